"""Follow a job to its end through dropped connections and API restarts."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from cli import sse
from cli.client import refuse, unreachable
from cli.failure import Failure
from cli.screen import note

PATIENCE = 60.0
"""Seconds without any answer after which we give up; the job goes on."""
LONGEST_PAUSE = 2.0
PROVEN = 5.0
"""Seconds after which an open connection is a good one."""
COME_BACK = frozenset({429, 500, 502, 503, 504})
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})


class Patience:
    """How often to try again, and for how long: renewed by every sign of life."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Something was heard."""
        self._until = time.monotonic() + self._seconds
        self._pause = 0.1
        self._told = False

    def wait(self, failure: Failure) -> None:
        """Pause before the next try; raises `failure` when there was nothing for too long."""
        if time.monotonic() + self._pause > self._until:
            raise failure
        if not self._told:
            note("The connection was lost; trying again …")
            self._told = True
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)


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
    while True:
        failure: Failure
        try:
            response = client.get(f"/v1/chat/completions/{job_id}", headers={"Prefer": "wait=20"})
            if response.status_code not in COME_BACK:
                refuse(response)
                waiting.renew()
                completion: dict[str, Any] = json.loads(response.content)
                if completion.get("status", "completed") in ENDED:
                    return completion
                continue
            failure = Failure(f"The API answers {response.status_code}.")
        except httpx.TransportError as error:
            failure = unreachable(client, error)
        waiting.wait(failure)


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
