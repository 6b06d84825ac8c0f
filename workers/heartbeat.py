"""This process's lease: beat, self-fence, and the jobs it is asked to stop.

The lease is trusted until `ttl − margin` after the last beat was *sent*, by this process's own
monotonic clock. Past that it may have been given away: everything is stopped, nothing more is said,
and the process registers anew.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from shared import leases, streams
from shared.db import Transactions
from shared.errors import Unavailable
from workers.settings import WorkerSettings

log = structlog.get_logger()

STALLED_EXIT = 70
"""Exit status of a process whose event loop stood still for longer than its lease."""


class Heartbeat:
    """Keeps one lease at a time for the whole process."""

    def __init__(
        self,
        settings: WorkerSettings,
        tx: Transactions,
        redis: Redis,
        *,
        models: Sequence[str],
        on_cancel: Callable[[str], None],
        on_fenced: Callable[[], None],
    ) -> None:
        self.worker_id: str | None = None
        """The lease to claim under; None while there is none."""
        self._tx = tx
        self._redis = redis
        self._models = models
        self._slots = settings.worker_concurrency
        self._on_cancel = on_cancel
        self._on_fenced = on_fenced
        self._beat = settings.lease_beat.total_seconds()
        self._trusted = (settings.lease_ttl - settings.lease_margin).total_seconds()
        self._until = 0.0
        self._pulses = 0
        self._pulse_timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Register, then beat until `stop`. Waits for the database as long as it takes."""
        self._pulse()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        await self._register()
        self._tasks = [
            asyncio.create_task(self._run(), name="heartbeat"),
            asyncio.create_task(self._listen(), name="control channel"),
        ]

    async def stop(self) -> None:
        """Give the lease back."""
        worker_id, self.worker_id = self.worker_id, None
        self._stopped.set()
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if worker_id is not None:
            with suppress(Unavailable):
                await self._tx(leases.retire, worker_id)

    @property
    def held(self) -> bool:
        """Whether the lease can be trusted now."""
        return self.worker_id is not None and time.monotonic() < self._until

    async def _register(self) -> None:
        while True:
            sent = time.monotonic()
            try:
                worker_id = await self._tx(
                    leases.register, pid=os.getpid(), slots=self._slots, models=self._models
                )
            except Unavailable as error:
                log.warning("database_away", error=error.message)
                await asyncio.sleep(min(self._beat, 1.0))
            else:
                self.worker_id, self._until = worker_id, sent + self._trusted
                log.info("lease_taken", worker_id=worker_id, models=self._models)
                return

    async def _run(self) -> None:
        while True:
            try:
                await self._tick()
            except Exception:  # without a heart nothing else would go on
                log.exception("beat_broke")
            await asyncio.sleep(self._beat)

    async def _tick(self) -> None:
        """Beat once; stop what should stop; fence ourselves when the lease is gone or in doubt."""
        assert self.worker_id is not None
        sent = time.monotonic()
        asked: list[str] | None = []
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._until - sent):
                asked = await self._tx(leases.beat, self.worker_id)
        except (Unavailable, TimeoutError) as error:
            log.warning("beat_missed", error=str(error))
        else:
            if asked is not None:
                self._until = sent + self._trusted
        if asked is None or time.monotonic() >= self._until:
            log.error("lease_lost", worker_id=self.worker_id)
            self.worker_id = None
            self._on_fenced()
            await self._register()
        for job_id in asked or []:
            self._on_cancel(job_id)

    async def _listen(self) -> None:
        """Hear of cancelled jobs at once; whatever is missed here comes with the next beat."""
        while True:
            try:
                await self._hear()
            except Exception as error:
                log.warning("control_channel_lost", error=repr(error))
                await asyncio.sleep(1.0)

    async def _hear(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            listening_as = None
            while True:
                if self.worker_id != listening_as and self.worker_id is not None:
                    await pubsub.subscribe(streams.control_channel(self.worker_id))
                    listening_as = self.worker_id
                message = await pubsub.get_message(timeout=1.0)
                if message is not None:
                    self._on_cancel(message["data"].decode())

    def _pulse(self) -> None:
        self._pulses += 1
        self._pulse_timer = asyncio.get_running_loop().call_later(self._beat / 2, self._pulse)

    def _watch(self) -> None:
        """End a process whose loop stands still: nobody else can stop its upstream calls.

        It counts its own looks, not seconds, so that a process that was frozen as a whole and goes
        on is left to fence itself.
        """
        seen, still = -1, 0.0
        while not self._stopped.wait(self._beat):
            still = still + self._beat if self._pulses == seen else 0.0
            seen = self._pulses
            if still >= self._trusted:
                log.critical("loop_stalled", seconds=still)
                os._exit(STALLED_EXIT)
