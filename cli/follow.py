"""Follow a job to its end through dropped connections and API restarts."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from cli import sse
from cli.client import refuse, unreachable
from cli.failure import Failure
from cli.patience import COME_BACK, PATIENCE, Patience, insist

PROVEN = 5.0
"""Seconds after which an open connection is a good one."""
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})


def follow(
    client: httpx.Client, job_id: str, after: int = 0, patience: float = PATIENCE
) -> Iterator[sse.Event]:
    """The job's events after number `after`, each once, until its stream has ended.

    Raises `Failure` when the API refuses, or has been silent for `patience` seconds.
    """
    last, waiting = after, Patience(patience)
    path = f"/v1/chat/completions/{job_id}"
    while True:
        query = {"stream": "true", "starting_after": str(last)}
        failure: Failure
        try:
            with client.stream("GET", path, params=query) as response:
                if response.status_code not in COME_BACK:
                    refuse(response)
                    for event in sse.events(_heard(response, waiting)):
                        if event.data == "[DONE]":
                            return
                        if event.name == "error" and _draining(event):
                            break
                        if event.id is not None and event.name == "message":
                            last = int(event.id)
                            waiting.renew()
                        yield event
            failure = Failure(f"The stream broke off; `sluice watch {job_id}` goes on with it.")
        except httpx.TransportError as error:
            failure = unreachable(client, error)
        waiting.wait(failure)


def until_ended(client: httpx.Client, job_id: str, patience: float = PATIENCE) -> dict[str, Any]:
    """The job's `chat.completion` once it has ended. Raises `Failure` as `follow` does."""
    waiting = Patience(patience)
    path, held = f"/v1/chat/completions/{job_id}", {"Prefer": "wait=20"}
    while True:
        response = insist(client, lambda: client.get(path, headers=held), waiting)
        completion: dict[str, Any] = json.loads(response.content)
        if completion.get("status", "completed") in ENDED:
            return completion


def _draining(event: sse.Event) -> bool:
    """Whether it is the server that ends, and not the job's stream."""
    code: str = json.loads(event.data)["error"]["code"]
    return code == "draining"


def _heard(response: httpx.Response, waiting: Patience) -> Iterator[bytes]:
    since = time.monotonic()
    for chunk in response.iter_bytes():
        # A heartbeat counts once the connection has proven itself: one that only ever greets and
        # hangs up is no sign of life.
        if time.monotonic() - since > PROVEN:
            waiting.renew()
        yield chunk
