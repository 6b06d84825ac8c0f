"""Celery's seam: a worker pool that runs async tasks on one event loop, in a thread of its own.

Celery's main thread (its hub) fetches messages and hands them to `on_apply`; the loop's thread
runs them. Whatever the hub must hear of goes back as a callback through one mailbox, so that all
of Celery's own code runs in its own thread and in order.

    hub ── on_apply, terminate_job ──▶ loop ── accepted, ended, timed out ──▶ mailbox ──▶ hub

`async def` tasks are called directly: Celery's tracer is synchronous and keeps the current task
per thread, so they have no `self.request`, no retry, no signals. Plain `def` tasks keep the tracer
and run in a thread. The app may have three attributes: `lifespan()`, an async context manager that
lives as long as the loop, `async def drain(unbegun)`, which lets go of the work when the worker
stops, given the name and arguments of each call that came too late to begin, and `reload()`, which
the loop calls on SIGHUP; Celery's own answer to that is to start over. It gets one: `spare`, an
async context manager that lends a task a second slot if one is free, or gets so in a moment.
"""

import asyncio
import inspect
import itertools
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import Any

import uvloop
from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import Terminated
from celery.platforms import EX_FAILURE
from celery.utils.saferepr import saferepr
from celery.worker import state

from shared.hangup import on_hangup

CANCEL_WITHIN = 10.0
"""Seconds that cancelled tasks have to clean up when the worker stops."""
ACCEPTED_WITHIN = 0.05
"""Seconds within which Celery hears that a task has begun."""
LEAVE_WITHIN = 20.0
"""Seconds that the lifespan has to end; a locked SQLite file alone may take eight of them."""

log = logging.getLogger(__name__)

Report = Callable[[], object]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Call:
    """One call of a task. Celery keeps a weak reference to it, to terminate it."""

    pool: "AsyncIOPool"
    number: int
    """What Celery takes for a process id and names in `terminate_job`."""
    target: Callable[..., Any]
    args: tuple[Any, ...]
    """Celery's message: task name, task id, request, body, content type, content encoding."""
    on_accepted: Callable[[int, float], object]
    on_ended: Callable[[tuple[int, Any, float]], object]
    on_timeout: Callable[[bool, float], object]
    time_limit: float | None
    task: "asyncio.Task[Report] | None" = None
    accepted: bool = False
    cancelled: bool = False

    def terminate(self, signal: int | None = None) -> None:
        """Celery's second way to revoke, used beside `terminate_job`."""
        self.pool.terminate_job(self.number, signal)


class AsyncIOPool(BasePool):  # type: ignore[misc]
    """As many tasks at once as `limit` says, all on one event loop."""

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = False

    limit: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}  # the loop's thread only
        self._mailbox: SimpleQueue[Report] = SimpleQueue()
        # Rings in the hub's poll, not in its `call_soon`: what Celery makes due while it is called
        # from there, an ack above all, waits for the next poll's end, up to a second.
        self._bell, self._heard = socket.socketpair()
        self._bell.setblocking(False)
        self._heard.setblocking(False)
        self._rung = False
        self._ringing: asyncio.TimerHandle | None = None
        self._hub: Any = None
        self._loop = uvloop.new_event_loop()
        self._thread = Thread(target=self._run_loop, name="event-loop", daemon=True)
        self._main: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(self.limit)
        self._lent = 0
        """Slots that tasks have taken beside their own."""
        self.app.spare = self.spare
        self._started = Event()
        self._stop = asyncio.Event()
        self.failure: BaseException | None = None
        self._stopping = False
        self._unbegun: list[Call] = []
        """What came too late; the broker may not keep it."""
        self._hurried = False
        self._give_up_at = float("inf")
        self._draining: asyncio.Task[None] | None = None

    # What Celery calls, in its main thread.

    def on_start(self) -> None:
        """Start the loop and enter the app's lifespan; raises what the lifespan raised."""
        if (reload := getattr(self.app, "reload", None)) is not None:
            on_hangup(partial(self._tell_loop, reload))
        self._thread.start()
        try:
            while not self._started.wait(0.1):
                state.maybe_shutdown()  # SIGTERM while the lifespan waits for a database, say
            if self.failure is not None:
                raise self.failure
        except BaseException:
            self.on_terminate()
            raise

    def register_with_event_loop(self, hub: Any) -> None:
        """Take the hub, at the start and after every reconnect, which made it forget the bell."""
        self._hub = hub
        hub.add_reader(self._heard, self._deliver)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: object = None,
        *,
        callback: Callable[..., object],
        accept_callback: Callable[..., object],
        timeout_callback: Callable[..., object],
        timeout: float | None = None,
        **_: object,
    ) -> Call:
        """Begin a task; Celery hears once that it was accepted and once how it ended."""
        call = Call(
            pool=self,
            number=next(self._numbers),
            target=target,
            args=tuple(args),
            on_accepted=accept_callback,
            on_ended=callback,
            on_timeout=timeout_callback,
            time_limit=timeout,
        )
        self._tell_loop(self._begin, call)
        return call

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Cancel the call of this number, once, if it is still there."""
        self._tell_loop(self._cancel, pid)

    @property
    def num_processes(self) -> int:
        """How many tasks there may be: Celery fetches a message only when there are fewer."""
        return self.limit - self._lent

    def on_stop(self) -> None:
        """Drain, cancel what is left, leave the lifespan, delivering callbacks all the while.

        A signal handler may call this again while it runs: then nothing is waited for any more
        but the tasks' own cleaning up.
        """
        again, self._stopping = self._stopping, True
        if again or state.should_terminate:
            self._give_up_at = monotonic() + CANCEL_WITHIN + LEAVE_WITHIN
            self._tell_loop(self._hurry)
        if again:
            return
        self._tell_loop(self._stop.set)
        while self._thread.is_alive() and monotonic() < self._give_up_at:
            with suppress(Empty):  # the hub stands still by now
                self._receive(self._mailbox.get(timeout=0.05))
        self._deliver()
        self._close_bell()
        if self._thread.is_alive():
            log.error("the event loop does not end and is left behind")

    def on_terminate(self) -> None:
        """End at once; after SIGQUIT, `on_stop` has been called by the signal's handler."""
        self._stopping = True
        self._tell_loop(self._abandon)
        self._thread.join(LEAVE_WITHIN)
        self._close_bell()

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "in-flight": len(self._calls)}

    # Between the threads.

    def _tell_loop(self, act: Callable[..., object], *args: object) -> None:
        # A closed loop takes nothing: the worker is about to end.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(act, *args)

    def _post(self, report: Report) -> None:
        """Hand the hub something to call. From the loop's thread only."""
        self._mailbox.put(report)
        self._ring()

    def _ring(self) -> None:
        if self._ringing is not None:
            self._ringing.cancel()
            self._ringing = None
        if not self._rung:  # once is enough: `_deliver` resets this before it looks
            self._rung = True
            with suppress(OSError):  # closed: the worker has ended
                self._bell.send(b"\0")

    def _deliver(self) -> None:
        with suppress(OSError):
            self._heard.recv(16)
        self._rung = False
        with suppress(Empty):
            while True:
                self._receive(self._mailbox.get_nowait())

    def _close_bell(self) -> None:
        if self._hub is not None:
            self._hub.remove_reader(self._heard)
            self._hub = None
        self._bell.close()
        self._heard.close()

    def _receive(self, report: Report) -> None:
        try:
            report()
        except Exception:  # it would end the worker
            log.exception("a callback of Celery's failed")

    # The loop's thread.

    @asynccontextmanager
    async def spare(self, within: float) -> AsyncIterator[bool]:
        """Another slot for a task that has work for it, if one is free in so many seconds."""
        if self._slots.locked() and not within:
            yield False
            return
        self._lent += 1  # while it waits, too: it comes before what the hub would fetch
        got = False
        try:
            with suppress(TimeoutError):
                # Most find one at once, without a timer.
                async with asyncio.timeout(within) if self._slots.locked() else nullcontext():
                    got = await self._slots.acquire()
            yield got
        finally:
            self._lent -= 1
            if self._slots.locked():  # then the hub fetches nothing until it is told
                self._post(lambda: None)
            if got:
                self._slots.release()

    def _run_loop(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        except BaseException as error:
            broken_off = isinstance(error, asyncio.CancelledError)
            if not broken_off:
                log.critical("the worker's lifespan failed", exc_info=error)
            if not (broken_off and self._stopping):  # then it is as we were told
                self.failure = error
            if self._started.is_set() and not self._stopping:
                state.should_stop = EX_FAILURE
                self._post(lambda: None)  # wakes the hub, which then looks
        finally:
            self._started.set()

    async def _live(self) -> None:
        self._main = asyncio.current_task()
        async with (
            asyncio.timeout(None) as patience,
            getattr(self.app, "lifespan", nullcontext)(),
        ):
            self._started.set()
            await self._stop.wait()
            await self._wind_down()
            patience.reschedule(self._loop.time() + LEAVE_WITHIN)

    async def _wind_down(self) -> None:
        for call in self._calls.values():
            if not call.accepted:
                self._unbegun.append(call)
                self._cancel(call.number)
        if (drain := getattr(self.app, "drain", None)) and not self._hurried:
            unbegun = [(call.args[0], call.args[2]["args"]) for call in self._unbegun]
            self._draining = asyncio.create_task(drain(unbegun))
            await asyncio.wait({self._draining})
            if not self._draining.cancelled() and (error := self._draining.exception()):
                log.error("draining failed", exc_info=error)
        self._give_up_at = monotonic() + CANCEL_WITHIN + LEAVE_WITHIN
        for number in self._calls:
            self._cancel(number)
        if tasks := [call.task for call in self._calls.values() if call.task]:
            await asyncio.wait(tasks, timeout=CANCEL_WITHIN)

    def _abandon(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _hurry(self) -> None:
        self._hurried = True
        if self._draining is not None:
            self._draining.cancel()

    def _begin(self, call: Call) -> None:
        if self._stopping:
            self._unbegun.append(call)
            return
        self._calls[call.number] = call
        call.task = self._loop.create_task(self._run(call))
        call.task.add_done_callback(partial(self._end, call))

    def _cancel(self, number: int) -> None:
        call = self._calls.get(number)
        # Celery revokes twice; a second cancellation would break into the task's cleaning up.
        if call is not None and call.task is not None and not call.cancelled:
            call.cancelled = True
            call.task.cancel()

    async def _run(self, call: Call) -> Report:
        name, _, request, *_ = call.args
        function = self.app.tasks[name].run
        async with self._slots:
            self._accept(call)
            began = monotonic()
            try:
                async with asyncio.timeout(call.time_limit) as limit:
                    if inspect.iscoroutinefunction(function):
                        result = await function(*request["args"], **request["kwargs"])
                    else:
                        traced = await asyncio.to_thread(call.target, *call.args)
                        return partial(call.on_ended, traced)
            except TimeoutError:
                if not limit.expired():
                    raise  # the task's own
                return partial(call.on_timeout, False, call.time_limit or 0.0)
            except (SystemExit, KeyboardInterrupt) as error:
                # asyncio would end the loop, and Celery the worker.
                raise RuntimeError(f"the task raised {error!r}") from error
        return partial(call.on_ended, (0, saferepr(result), monotonic() - began))

    def _accept(self, call: Call) -> None:
        call.accepted = True
        self._mailbox.put(partial(call.on_accepted, call.number, monotonic()))
        if self._ringing is None:  # most have ended by then, and the hub hears of both at once
            self._ringing = self._loop.call_later(ACCEPTED_WITHIN, self._ring)

    def _end(self, call: Call, task: "asyncio.Task[Report]") -> None:
        del self._calls[call.number]
        if not call.accepted:
            if self._stopping:
                return
            self._accept(call)  # only then does Celery say that it was revoked
        try:
            if task.cancelled():
                raise Terminated("cancelled")  # Celery's word; ignored if it has announced it
            report = task.result()
        except Exception as error:
            if not isinstance(error, Terminated):
                log.exception("task %s[%s] failed", *call.args[:2])
            report = partial(call.on_ended, (1, ExceptionInfo(), 0.0))
        self._post(report)
