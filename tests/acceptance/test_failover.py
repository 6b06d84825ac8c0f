"""Redis fails over to a replica that has nothing: a delay; nothing is lost, nothing said twice."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from shared import queue
from shared.lifecycle import Lane
from tests import sqlite
from tests.fakes.upstream import Say, ScriptedUpstream, WaitFor
from tests.frames import frames, text_of
from tests.sentinel import replicating, sentinel
from tests.stack import QUICK_LEASES, Stack, eventually
from tests.valkey import Valkey, valkey

PATH = "/v1/chat/completions"
REQUEST: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}
WHOLE = "one two three"
SLOTS = 4


@dataclass
class Pair:
    """A master, what copies it, and a stack that asks a Sentinel for the one that serves."""

    master: Valkey
    copy: Redis
    stack: Stack

    def lose_all(self) -> None:
        """Kill the master, and empty the copy before the Sentinel turns to it."""
        self.master.kill()
        self.copy.flushall()

    @property
    def promoted(self) -> bool:
        """Whether the copy is the master now."""
        return bool(self.copy.role()[0] == b"master")


@pytest.fixture
def pair(tmp_path: Path, redis_server: Valkey, upstream: ScriptedUpstream) -> Iterator[Pair]:
    """On SQLite, for which database it is makes no difference here."""
    database_url = sqlite.fresh(tmp_path)
    (tmp_path / "replica").mkdir()
    with ExitStack() as opened:
        replica = opened.enter_context(valkey(tmp_path / "replica"))
        copy = opened.enter_context(replicating(replica, redis_server))
        url = opened.enter_context(sentinel(tmp_path, redis_server))
        stack = opened.enter_context(Stack(tmp_path, database_url, url, upstream))
        stack.environment |= {**QUICK_LEASES, "SLUICE_WORKER_CONCURRENCY": str(SLOTS)}
        yield Pair(redis_server, copy, stack)


def submit(http: httpx.Client) -> str:
    """The id of a new background job."""
    response = http.post(PATH, json={**REQUEST, "background": True})
    assert response.status_code == 202, response.read()
    return str(response.headers["x-job-id"])


def test_a_failover_to_an_empty_replica_costs_a_delay(pair: Pair) -> None:
    """Logs, bells and hints are gone; every job ends once, and every reader hears all of it."""
    stack, calls = pair.stack, pair.stack.upstream.calls
    lost, promoted = threading.Event(), threading.Event()
    steps = (Say("one"), WaitFor(lost), Say(" two"), WaitFor(promoted), Say(" three"))
    stack.upstream.script("test", *steps)
    worker, api = stack.worker(), stack.api()
    stack.ready(api, worker)
    http = stack.http()

    with ThreadPoolExecutor() as pool:
        try:
            streamed = pool.submit(stack.http().post, PATH, json={**REQUEST, "stream": True})
            held = pool.submit(stack.http().post, PATH, json=REQUEST)
            jobs = [submit(http), submit(http)]
            watched = pool.submit(stack.http().get, f"/v1/jobs/{jobs[0]}/events")
            eventually(lambda: sum(call.deltas > 1 for call in calls) == SLOTS, 20)
            jobs += [submit(http) for _ in range(3)]
            eventually(lambda: pair.copy.llen(queue.queue_key(Lane.INTERACTIVE)) == 3)
            pair.lose_all()
            lost.set()
            eventually(lambda: http.get("/health/ready").status_code == 503)
            jobs += [submit(http) for _ in range(2)]
            assert (pair.promoted, pair.copy.dbsize()) == (False, 0)
            eventually(lambda: pair.promoted, 30)
        finally:
            lost.set()
            promoted.set()
    stack.ready(api, worker)
    ended = eventually(lambda: all_ended(http, SLOTS + 5), 30)
    after = http.post(PATH, json={**REQUEST, "stream": True})

    assert [(job["status"], job["attempt"]) for job in ended] == [("completed", 1)] * len(ended)
    for job_id in jobs:
        stored = http.get(f"{PATH}/{job_id}").json()
        assert stored["choices"][0]["message"]["content"] == WHOLE
    assert held.result().json()["choices"][0]["message"]["content"] == WHOLE
    for read, first in ((streamed.result(), 1), (watched.result(), 0), (after, 1)):
        seen = list(frames(iter([read.content])))
        numbers = [frame.id for frame in seen if frame.id is not None]
        assert (text_of(seen), numbers) == (WHOLE, list(range(first, first + len(numbers))))
    assert len(calls) == len(ended) + 1
    assert (worker.running, api.running) == (True, True)


def all_ended(http: httpx.Client, count: int) -> list[Any] | None:
    """All jobs there are, once so many have ended."""
    found: list[Any] = http.get("/v1/jobs", params={"limit": 100}).json()["data"]
    return found if sum(job["completed_at"] is not None for job in found) == count else None
