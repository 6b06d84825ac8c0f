"""The pool's contract with Celery, in this process, with a hub of a few lines."""

import asyncio
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from celery.exceptions import Terminated

from shared import queue
from tests.stack import eventually
from workers.pool import AsyncIOPool, Call


class Hub:
    """What the pool needs of kombu's hub: somebody who listens to its bell."""

    def __init__(self) -> None:
        self.readers: dict[socket.socket, Callable[[], object]] = {}
        self.add_reader = self.readers.__setitem__
        self.remove_reader = self.readers.pop

    def turn_until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 5
        while not true():
            assert time.monotonic() < deadline, "the callback did not come"
            for ready in select.select(list(self.readers), [], [], 0.05)[0]:
                self.readers[ready]()


class Bench:
    """A running pool, its hub, and what the pool told Celery of each call, in order."""

    def __init__(self, limit: int) -> None:
        self.app = queue.connect("redis://127.0.0.1:1/0")
        self.hub = Hub()
        self.told: list[tuple[str, str, Any]] = []
        self.threads: set[int] = set()
        self.pool = AsyncIOPool(limit, app=self.app)

    def call(
        self,
        name: str,
        task: Callable[..., Awaitable[object]],
        *args: object,
        timeout: float | None = None,
        on_accepted: Callable[[], object] = lambda: None,
    ) -> Call:
        """Apply a task as Celery's request does, noting the callbacks under `name`."""
        self.app.task(name=task.__name__, shared=False)(task)

        def tell(what: str, value: Any = None) -> None:
            self.threads.add(threading.get_ident())
            self.told.append((name, what, value))

        def accepted(*_: object) -> None:
            tell("accepted")
            on_accepted()

        request = {"args": args, "kwargs": {}}
        call: Call = self.pool.apply_async(
            None,
            (task.__name__, name, request, b"", "application/json", "utf-8"),
            {},
            accept_callback=accepted,
            callback=lambda outcome: tell("failed" if outcome[0] else "ended", outcome[1]),
            timeout_callback=lambda soft, limit: tell("timed out", limit),
            error_callback=None,
            timeout=timeout,
            correlation_id=name,
        )
        return call

    def history(self, name: str) -> list[str]:
        """What Celery was told of this call."""
        return [what for whose, what, _ in self.told if whose == name]

    def finish(self, *names: str) -> None:
        """Let the hub turn until Celery knows how these calls ended."""
        self.hub.turn_until(lambda: all(len(self.history(name)) > 1 for name in names))


@contextmanager
def running_pool(limit: int = 100) -> Iterator[Bench]:
    """A started pool with its hub, stopped in the end."""
    bench = Bench(limit)
    bench.pool.start()
    bench.pool.register_with_event_loop(bench.hub)
    try:
        yield bench
    finally:
        bench.pool.stop()


async def quick() -> str:
    """Come back at once."""
    return "well"


async def forever() -> None:
    """Wait to be cancelled."""
    await asyncio.Event().wait()


def test_each_call_is_accepted_once_and_then_ends_once_in_the_hubs_thread() -> None:
    """Celery's bookkeeping is single-threaded and counts on this order."""
    with running_pool() as bench:
        names = [f"call-{number}" for number in range(1_000)]
        for name in names:
            bench.call(name, quick)
        bench.finish(*names)

    assert all(bench.history(name) == ["accepted", "ended"] for name in names)
    assert bench.threads == {threading.get_ident()}


def test_a_call_is_accepted_while_it_lasts() -> None:
    """Though Celery is not woken for it at once."""
    with running_pool() as bench:
        call = bench.call("long", forever)
        bench.hub.turn_until(lambda: bench.history("long") == ["accepted"])
        bench.pool.terminate_job(call.number)
        bench.finish("long")

    assert bench.history("long") == ["accepted", "failed"]


def test_celery_hears_of_all_calls_in_the_order_in_which_things_happened() -> None:
    """What was handed over first is accepted first, what ended first is told first."""
    ended: list[str] = []

    async def busy(name: str, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        ended.append(name)

    with running_pool() as bench:
        names = [f"call-{number}" for number in range(200)]
        for number, name in enumerate(names):
            bench.call(name, busy, name, number * 7 % 5)
        bench.finish(*names)

    assert [name for name, what, _ in bench.told if what == "accepted"] == names
    assert [name for name, what, _ in bench.told if what == "ended"] == ended


def test_no_more_calls_run_than_the_limit_says() -> None:
    """Also when Celery hands over more than it should."""
    seen: list[int] = []
    here = 0

    async def busy() -> None:
        nonlocal here
        here += 1
        seen.append(here)
        await asyncio.sleep(0)
        here -= 1

    with running_pool(limit=3) as bench:
        names = [f"call-{number}" for number in range(50)]
        for name in names:
            bench.call(name, busy)
        bench.finish(*names)

    assert max(seen) == 3


def test_a_task_may_have_a_second_slot_if_one_is_free() -> None:
    """Celery then fetches one message fewer, until it is given back."""
    with running_pool(limit=2) as bench:
        seen: list[tuple[bool, bool, int]] = []

        async def greedy() -> None:
            async with bench.app.spare(0.0) as one, bench.app.spare(0.0) as another:
                seen.append((one, another, bench.pool.num_processes))

        assert bench.pool.num_processes == 2
        bench.call("a", greedy)
        bench.finish("a")

        assert seen == [(True, False, 1)]
        assert bench.pool.num_processes == 2


def test_whoever_waits_for_a_second_slot_gets_the_next_that_is_free() -> None:
    """Before anything else is fetched; after a while without it goes on."""
    with running_pool(limit=2) as bench:
        let_go = asyncio.Event()
        seen: list[tuple[bool, int]] = []

        async def busy() -> None:
            await let_go.wait()

        async def greedy() -> None:
            async with bench.app.spare(0.01) as too_soon:
                pass
            seen.append((too_soon, bench.pool.num_processes))
            asyncio.get_running_loop().call_later(0.01, let_go.set)
            async with bench.app.spare(60.0) as at_last:
                seen.append((at_last, bench.pool.num_processes))

        bench.call("a", busy)
        bench.call("b", greedy)
        bench.finish("a", "b")

        assert seen == [(False, 2), (True, 1)]
        assert bench.pool.num_processes == 2


def test_a_callback_that_fails_takes_nothing_with_it() -> None:
    """An exception that left the pool would end the worker."""
    with running_pool() as bench:
        bench.call("bad", quick, on_accepted=lambda: 1 / 0)
        bench.call("good", quick)
        bench.finish("bad", "good")

    assert bench.history("bad") == ["accepted", "ended"]


@pytest.mark.parametrize("error", [ValueError, TimeoutError, SystemExit, KeyboardInterrupt])
def test_whatever_a_task_raises_is_its_own_failure(error: type[BaseException]) -> None:
    """The loop, the worker and the other tasks go on; its own timeout is not the hard limit."""

    async def raising() -> None:
        raise error("no")

    with running_pool() as bench:
        bench.call("bad", raising, timeout=5)
        bench.call("good", quick)
        bench.finish("bad", "good")

    assert bench.history("bad") == ["accepted", "failed"]
    assert bench.history("good") == ["accepted", "ended"]


def test_a_task_past_its_hard_limit_is_cancelled_and_reported_as_such() -> None:
    """Celery hears of the limit and of no other end."""
    with running_pool() as bench:
        bench.call("long", forever, timeout=0.05)
        bench.finish("long")
        bench.call("next", quick)
        bench.finish("next")

    assert [event for event in bench.told if event[0] == "long"] == [
        ("long", "accepted", None),
        ("long", "timed out", 0.05),
    ]


def test_a_call_revoked_while_it_waits_for_a_slot_never_starts() -> None:
    """It is still accepted, since only then does Celery announce the revocation."""
    started: list[str] = []

    async def noting(name: str) -> None:
        started.append(name)
        await asyncio.Event().wait()

    with running_pool(limit=1) as bench:
        first = bench.call("first", noting, "first")
        bench.hub.turn_until(lambda: started)
        bench.call("second", noting, "second").terminate()
        bench.finish("second")
        bench.pool.terminate_job(first.number)
        bench.finish("first")

    assert started == ["first"]
    assert bench.history("second") == ["accepted", "failed"]
    assert isinstance(bench.told[-1][2].exception.exc, Terminated)


def test_revoking_twice_lets_the_task_clean_up() -> None:
    """Celery revokes through the pool and through the call."""
    cleaning: list[str] = []

    async def careful() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.append("began")
            await asyncio.sleep(0.05)
            cleaning.append("ended")

    with running_pool() as bench:
        call = bench.call("careful", careful)
        bench.hub.turn_until(lambda: bench.history("careful"))
        bench.pool.terminate_job(call.number)
        eventually(lambda: cleaning)
        call.terminate()
        bench.finish("careful")

    assert cleaning == ["began", "ended"]


def test_what_ended_while_the_broker_was_away_is_told_when_the_hub_is_back() -> None:
    """A reconnect begins with a hub that has forgotten all it listened to."""
    with running_pool() as bench:
        bench.hub.readers.clear()
        bench.call("call", quick)
        eventually(lambda: bench.pool.info["in-flight"] == 0)
        bench.pool.register_with_event_loop(bench.hub)
        bench.finish("call")

    assert bench.history("call") == ["accepted", "ended"]


def test_what_comes_too_late_to_begin_is_told_to_the_drain() -> None:
    """The broker has forgotten it: whoever sent it should hear of that."""
    bench = Bench(1)
    late: list[tuple[str, Sequence[str]]] = []

    async def drain(unbegun: Sequence[tuple[str, Sequence[str]]]) -> None:
        late.extend(unbegun)

    bench.app.drain = drain
    bench.pool.start()
    bench.pool.register_with_event_loop(bench.hub)
    bench.call("long", forever)
    bench.hub.turn_until(lambda: bench.history("long"))
    bench.call("waits for a slot", quick, "a job's id")
    bench.pool.stop()

    assert late == [("quick", ("a job's id",))]


def test_stopping_again_from_a_signal_handler_cuts_the_drain_short() -> None:
    """SIGQUIT, or a second Ctrl-C, while the worker waits for its tasks."""
    bench = Bench(10)
    drained: list[str] = []

    async def drain(_: object) -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        try:
            await asyncio.sleep(60)
        finally:
            drained.append("cut short")

    bench.app.drain = drain
    before = signal.signal(signal.SIGUSR1, lambda *_: bench.pool.stop())
    try:
        bench.pool.start()
        bench.pool.register_with_event_loop(bench.hub)
        bench.call("long", forever)
        bench.hub.turn_until(lambda: bench.history("long"))
        began = time.monotonic()
        bench.pool.stop()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert time.monotonic() - began < 5
    assert drained == ["cut short"]
    assert bench.history("long") == ["accepted", "failed"]
