"""This process's lease: beat, self-fence, and what the rows say it holds and should stop.

The lease is trusted until `ttl − margin` after the last beat was *sent*, by this process's own
monotonic clock. Past that it may have been given away: every upstream call is stopped, and the
process registers anew. What it had finished by then it takes along, the rest it hands back.
"""

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import structlog
from redis.asyncio import Redis

from shared import background, endings, leases, streams
from shared.db import Transactions
from shared.errors import Unavailable
from shared.leases import Held
from shared.tables import Job
from workers.hands import Hands
from workers.patience import insist
from workers.settings import WorkerSettings

log = structlog.get_logger()

STALLED_EXIT = 70
"""Exit status of a process whose event loop stood still for longer than its lease."""
SOON = 1.0
"""Seconds after a beat that was missed until the next one is tried."""
LEAVE_WITHIN = 5.0
"""Seconds that giving the lease back may take; after that it runs out by itself."""


class Heartbeat:
    """Keeps one lease at a time for the whole process."""

    def __init__(
        self,
        settings: WorkerSettings,
        tx: Transactions,
        redis: Redis,
        *,
        models: Sequence[str],
        hands: Hands,
    ) -> None:
        self.worker_id: str | None = None
        """The lease to claim under; None while there is none."""
        self._tx = tx
        self._redis = redis
        self._models = self._offered = models
        self._slots = settings.worker_concurrency
        self._hands = hands
        self._former: list[str] = []
        """Leases given up, whose jobs are still to be handed back."""
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
        """Give the lease back, and with it whatever it still holds."""
        leaving = [*self._former, self.worker_id]
        self.worker_id = None
        self._stopped.set()
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        await background.stop(*self._tasks)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN):
                for worker_id in filter(None, leaving):
                    ended = await insist(
                        partial(self._tx.alone, leases.leave, worker_id), worth_it=lambda: True
                    )
                    await self._announce(ended or [])

    @property
    def held(self) -> bool:
        """Whether the lease can be trusted now."""
        return self.worker_id is not None and time.monotonic() < self._until

    def offer(self, models: Sequence[str]) -> None:
        """Serve these models from now on; the next beat says so."""
        self._models = models

    async def _register(self) -> str:
        worker_id, models = leases.new_id(), self._models
        sent = 0.0

        async def register() -> None:
            nonlocal sent
            sent = time.monotonic()
            await self._tx(
                leases.register,
                worker_id=worker_id,
                pid=os.getpid(),
                slots=self._slots,
                models=models,
            )

        await insist(register, worth_it=lambda: True)
        self.worker_id, self._until = worker_id, sent + self._trusted
        self._offered = models
        log.info("lease_taken", worker_id=worker_id, models=models)
        return worker_id

    async def _run(self) -> None:
        while True:
            kept = True
            try:
                kept = await self._tick()
            except Exception:  # without a heart nothing else would go on
                log.exception("beat_broke")
            await asyncio.sleep(self._beat if kept else min(self._beat, SOON))

    async def _tick(self) -> bool:
        """Beat once; fence ourselves when the lease is gone or in doubt. False: look again soon."""
        worker_id = self.worker_id or await self._register()
        sent, lost, held = time.monotonic(), False, None
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._until - sent):
                held = await self._tx(leases.beat, worker_id)
                lost = held is None
                if held is not None:
                    self._until = sent + self._trusted
                    await self._reconcile(worker_id, held)
                    await self._say_what_is_offered(worker_id)
        except (Unavailable, TimeoutError) as error:
            log.warning("beat_missed", error=str(error))
        if lost or time.monotonic() >= self._until:
            self._fence(worker_id)
            return False
        return held is not None

    async def _reconcile(self, worker_id: str, held: list[Held]) -> None:
        """Stop what should stop; hand back what two beats found in our name and nobody here knows.

        After a fence: take what is finished along from the former lease, and hand back the rest.
        """
        unknown = self._hands.unknown()
        self._hands.compare(held)
        while self._former:
            finished = self._hands.unfenced()
            ended = await self._tx.alone(leases.succeed, self._former[0], worker_id, finished)
            del self._former[0]
            await self._announce(ended)
        if unknown:
            log.warning("handed_back_unknown", jobs=[one.job_id for one in unknown])
            await self._announce(await self._tx.alone(leases.hand_back, worker_id, unknown))

    async def _announce(self, ended: Sequence[Job]) -> None:
        """Tell whoever reads them of jobs that ended as we let go of them."""
        for job in ended:
            await endings.announce(self._tx, self._redis, job)

    async def _say_what_is_offered(self, worker_id: str) -> None:
        models = self._models
        if models != self._offered:
            await self._tx(leases.offer, worker_id, models)
            self._offered = models

    def _fence(self, worker_id: str) -> None:
        """Stop every upstream call; the next tick registers anew."""
        log.error("lease_lost", worker_id=worker_id)
        self.worker_id = None
        self._former.append(worker_id)
        self._hands.stop_all("fenced")

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
                if self.worker_id not in (None, listening_as):
                    await pubsub.subscribe(streams.control_channel(self.worker_id))
                    listening_as = self.worker_id
                if listening_as is None:  # the lease is gone as well: there is nothing to hear yet
                    await asyncio.sleep(SOON)
                    continue
                message = await pubsub.get_message(timeout=1.0)
                if message is not None:
                    self._hands.cancel(message["data"].decode())

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
