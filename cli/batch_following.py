"""Follow a batch to its end, through dropped connections and API restarts, however long it takes.

Whoever runs a batch wants its results; when to stop waiting is theirs to say, with Ctrl-C.
"""

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import httpx

from cli import sse
from cli.batch_output import Output
from cli.batch_screen import Display
from cli.client import Refused, refuse, unreachable
from cli.failure import Failure
from cli.patience import COME_BACK, Patience, insist
from cli.screen import note

Progress = dict[str, Any]
"""A batch, or what an event tells of it: `status`, `counts`, `usage`, `last_result` and others."""


def told(client: httpx.Client, batch_id: str) -> Iterator[Progress]:
    """How a batch comes along, as often as it changes; at last the whole of it, ended.

    Raises `Failure` when the API refuses.
    """
    waiting = Patience(math.inf)
    while True:
        failure = Failure("The connection was lost.")
        try:
            with client.stream("GET", f"/v1/batches/{batch_id}/events") as response:
                refuse(response)
                for event in sse.events(response.iter_bytes()):
                    waiting.renew()
                    data = json.loads(event.data)
                    if event.name != "batch.progress":
                        yield data["batch"]
                        return
                    yield data
        except httpx.TransportError as error:
            failure = unreachable(client, error)
        except Refused as refused:
            if refused.status not in COME_BACK:
                raise
            failure = refused
        waiting.wait(failure)


def pages(
    client: httpx.Client, batch_id: str, after: int, until: int, statuses: Sequence[str] = ()
) -> Iterator[tuple[bytes, int]]:
    """Results after one number, up to another: whole lines, and the number to go on after.

    Raises `Failure` when the API refuses.
    """
    path, waiting = f"/v1/batches/{batch_id}/results", Patience(math.inf)
    while after < until:
        query: dict[str, str | int] = {"after": after}
        if statuses:
            query["status"] = ",".join(statuses)
        page = insist(client, partial(client.get, path, params=query), waiting)
        after = int(page.headers["x-next-cursor"])
        yield page.content, after


def collect(client: httpx.Client, batch_id: str, output: Output) -> Progress:
    """Write results as they come; the batch, once it has ended and all of them are there."""
    batch: Progress = {}
    with Display() as display:
        for batch in told(client, batch_id):
            display.show(batch)
            _write(client, batch_id, output, batch["last_result"])
    if output.begun.lines > batch["counts"]["total"]:
        note("Lines were tried anew since they were written here: all results are read again.")
        output.rewind()
        _write(client, batch_id, output, batch["last_result"])
    output.forget()
    return batch


def _write(client: httpx.Client, batch_id: str, output: Output, until: int) -> None:
    for page, cursor in pages(client, batch_id, output.begun.cursor, until):
        output.append(page, cursor)
