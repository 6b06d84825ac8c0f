"""The pool in a worker process of its own, on a real Valkey: signals, refill, restarts, crowds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from celery import Celery

from shared import queue
from shared.lifecycle import Lane
from tests.stack import eventually
from tests.valkey import Valkey, valkey

INTERACTIVE = Lane.INTERACTIVE.value
ROOT = Path(__file__).parents[2]


class Worker:
    """A worker process running `pool_app`, and what its tasks noted."""

    def __init__(self, server: Valkey, concurrency: int, oddity: str) -> None:
        self.app: Celery = queue.connect(server.url)
        self.redis: redis.Redis = redis.Redis.from_url(server.url, decode_responses=True)
        self.redis.flushall()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.pool_app", str(concurrency)],
            cwd=ROOT,
            env={**os.environ, "POOL_APP_REDIS": server.url, "POOL_APP": oddity},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def send(self, task: str, *args: object, queue: str = INTERACTIVE, **options: Any) -> str:
        """Queue a task; its id."""
        return str(self.app.send_task(task, args, queue=queue, **options).id)

    def noted(self) -> list[str]:
        """What the tasks, the lifespan and the drain said so far."""
        notes: Any = self.redis.lrange("noted", 0, -1)
        return list(notes)

    def await_note(self, note: str, within: float = 10.0) -> None:
        """Wait until somebody said this."""
        eventually(lambda: note in self.noted(), within)

    def end(self, how: signal.Signals | None = None, within: float = 15.0) -> tuple[int, str]:
        """Send a signal, if any, and wait for the end: exit code and log."""
        if how is not None:
            self.process.send_signal(how)
        _, stderr = self.process.communicate(timeout=within)
        return self.process.returncode, stderr


@contextmanager
def worker(server: Valkey, concurrency: int = 4, oddity: str = "") -> Iterator[Worker]:
    """A worker that is gone afterwards, whatever happened."""
    process = Worker(server, concurrency, oddity)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.communicate()
        process.redis.close()
        process.app.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One Valkey for all workers of this module."""
    with valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


def test_a_worker_runs_limits_revokes_and_drains(server: Valkey) -> None:
    """One life of a worker: short work finishes, long work is cancelled, SIGTERM ends it well."""
    with worker(server) as it:
        it.send("nap", "late", 60, time_limit=0.3)
        it.await_note("late cancelled")
        revoked = it.send("nap", "unwanted", 60)
        it.await_note("unwanted started")
        it.app.control.revoke(revoked, terminate=True)
        it.await_note("unwanted cancelled")
        it.send("broken")
        traced = it.send("plain", "hello")
        it.await_note(f"hello from {traced}")
        it.send("nap", "long", 60)
        it.send("nap", "short", 1.3)  # the hub may take a second to see the signal
        it.await_note("short started")
        code, log = it.end(signal.SIGTERM)
        noted = it.noted()

    assert code == 0
    assert noted[-5:] == ["draining", "short done", "out of patience", "long cancelled", "left"]
    assert "Hard time limit (0.3s) exceeded for nap" in log
    assert "ZeroDivisionError: a bug" in log
    assert "CRITICAL" not in log


def test_sigquit_cancels_at_once_and_leaves_the_lifespan(server: Valkey) -> None:
    """No grace, but still the tasks' own cleaning up."""
    with worker(server, oddity="long-drain") as it:
        it.send("nap", "long", 60)
        it.await_note("long started")
        it.process.send_signal(signal.SIGTERM)
        it.await_note("draining")
        it.process.send_signal(signal.SIGTERM)
        it.end(signal.SIGQUIT, within=5)
        noted = it.noted()

    assert noted == ["entered", "long started", "draining", "long cancelled", "left"]


def test_a_slot_is_refilled_at_once(server: Valkey) -> None:
    """Forty short tasks through one slot; a hub that only polls would need 40 seconds."""
    with worker(server, concurrency=1) as it:
        it.await_note("entered")
        began = time.monotonic()
        for number in range(40):
            it.send("nap", str(number), 0)
        it.await_note("39 done")

    assert (time.monotonic() - began) / 40 < 0.05


def test_five_thousand_tasks_are_in_flight_in_bounded_memory(server: Valkey) -> None:
    """One process, one loop, all of them begun before the first one ends."""
    with worker(server, concurrency=5_000) as it:
        with it.app.producer_pool.acquire() as producer, producer.batch():
            for _ in range(5_000):
                it.send("crowd", producer=producer)
        eventually(lambda: it.redis.get("present") == "5000", within=60)
        memory = psutil.Process(it.process.pid).memory_info().rss
        it.redis.rpush("orders", "open")
        eventually(lambda: it.redis.get("present") == "0", within=30)
        code, _ = it.end(signal.SIGTERM)

    assert memory < 200 * 1024 * 1024
    assert code == 0


def test_a_lifespan_that_fails_to_begin_stops_the_worker(server: Valkey) -> None:
    """A worker without its database must not fetch work."""
    with worker(server, oddity="broken-lifespan") as it:
        code, log = it.end()

    assert code == 1
    assert "the worker's lifespan failed" in log
    assert "ConnectionError: no database" in log


def test_a_lifespan_that_breaks_stops_the_worker(server: Valkey) -> None:
    """Background work that died, the heartbeat say, would leave a worker that only looks alive."""
    with worker(server) as it:
        it.send("nap", "long", 60)
        it.await_note("long started")
        it.redis.rpush("orders", "crash")
        code, log = it.end()

    assert code == 1
    assert "RuntimeError: the background work died" in log
    assert "long cancelled" in it.noted()


def test_a_restart_of_redis_leaves_the_worker_at_work(server: Valkey) -> None:
    """Even with a message un-acknowledged, thanks to the guard in `shared.messages`."""
    with worker(server) as it:
        it.send("late_nap", 60, queue=queue.MAINTENANCE)
        it.await_note("late started")
        server.restart()
        it.send("nap", "after", 0)
        it.await_note("after done", within=20)

        assert it.process.poll() is None


def test_without_the_guard_such_a_restart_ends_the_worker(server: Valkey) -> None:
    """When this fails, kombu has been mended and the guard can go."""
    with worker(server, oddity="no-guard") as it:
        it.send("late_nap", 60, queue=queue.MAINTENANCE)
        it.await_note("late started")
        for _ in range(4):  # on a busy machine it may survive one
            server.restart()
            with suppress(subprocess.TimeoutExpired):
                code, log = it.end(within=6)
                break
        else:
            pytest.fail("the worker survived")

    assert code == 1
    assert "AttributeError" in log
