"""The loops that keep the queue honest, run by one elected process: sweep, rescue, expire, abandon.

They need the database, not Redis; whoever holds the leader's row runs them, and every step is
guarded by the rows, so that two leaders at once would only do the same work twice.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog
from celery import Celery
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlmodel import Session

from shared import endings, ids, jobs, leases
from shared.db import Transactions
from shared.errors import Unavailable
from shared.lifecycle import Lane
from shared.queue import Hints, queue_key
from shared.tables import Job
from workers.settings import WorkerSettings

log = structlog.get_logger()

EVERY = 1.0
"""Seconds between two turns."""
AT_ONCE = 500
"""Rows that one step of a turn changes at most."""
ROLE = "control"


def _room_for_batch(session: Session) -> int:
    """Slots that batch jobs may still take: the last third is kept for the interactive lane."""
    return leases.slots(session) * 2 // 3 - leases.running(session, Lane.BATCH.value)


class Stillness:
    """How long counters have stood still, by this process's own monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def watch(self, counters: dict[str, int]) -> dict[str, float]:
        """Seconds for which each has not changed; those no longer there are forgotten."""
        now = time.monotonic()
        for name, counter in counters.items():
            if self._seen.get(name, (None, 0.0))[0] != counter:
                self._seen[name] = (counter, now)
        self._seen = {name: self._seen[name] for name in counters}
        return {name: now - since for name, (_, since) in self._seen.items()}

    def forget(self) -> None:
        """Begin anew: while we could not look, nobody else could write either."""
        self._seen.clear()


class Control:
    """Stands for election, and turns the loops while elected.

    The workers are watched all the while, so that a new leader need not begin to.
    """

    def __init__(
        self, settings: WorkerSettings, tx: Transactions, redis: Redis, celery: Celery
    ) -> None:
        self._settings = settings
        self._tx = tx
        self._redis = redis
        self._me = ids.prefixed("ctl_")
        self._ttl = settings.lease_ttl.total_seconds()
        self._leader = Stillness()
        self._workers = Stillness()
        self._rival: tuple[str, int] | None = None
        self._hints = Hints(celery, self._lost)
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to turn; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="control")

    async def stop(self) -> None:
        """Stand down. Another process takes over when it has watched us stand still."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._hints.close)

    async def _run(self) -> None:
        while True:
            try:
                still = self._workers.watch(await self._tx.read(leases.alive))
                if await self._elected():
                    await self._turn(still)
            except Unavailable as error:
                log.warning("control_waits_for_database", error=error.message)
                self._leader.forget()
                self._workers.forget()
            except Exception:
                log.exception("control_turn_failed")
            await asyncio.sleep(EVERY)

    async def _elected(self) -> bool:
        holder, term = await self._tx(leases.lead, ROLE, self._me, self._rival)
        self._rival = None
        if holder == self._me:
            return True
        still = self._leader.watch({holder: term})[holder]
        if still >= self._ttl:
            self._rival = (holder, term)
        return False

    async def _turn(self, still: dict[str, float]) -> None:
        await self._reap(still)
        await self._end(jobs.expire)
        await self._end(jobs.abandoned)
        for lane in Lane:
            await self._sweep(lane)

    async def _reap(self, still: dict[str, float]) -> None:
        """Presume workers dead that were silent for a whole lease, and take their jobs back."""
        for worker_id, seconds in still.items():
            if seconds >= self._ttl:
                log.error("worker_lost", worker_id=worker_id, silent_seconds=round(seconds))
                await self._tx(leases.retire, worker_id)
        await self._end(leases.rescue)

    async def _end(self, step: Callable[..., Sequence[Job]]) -> None:
        """Run a step, then tell readers and workers what it did."""
        changed = await self._tx(step, AT_ONCE)
        if not changed:
            return
        log.info(step.__name__, jobs=[job.id for job in changed])
        for job in changed:
            await endings.announce(self._tx, self._redis, job)

    async def _sweep(self, lane: Lane) -> None:
        """Send the hints that are missing, and again those that were lost, within the window."""
        try:
            depth = int(await self._redis.llen(queue_key(lane.value)))
        except (RedisError, OSError):
            return  # nowhere to send them
        window = self._settings.hint_window
        out = await self._tx.read(leases.hinted, lane.value, window)
        # While the broker holds as many as are out, none is lost: they only wait.
        lost = depth < out
        stale = round(self._settings.hint_ttl.total_seconds() * 1000) if lost else None
        room = window - depth
        if lane == Lane.BATCH:
            room = min(room, await self._tx.read(_room_for_batch) - out)
        limit = min(max(0, room), AT_ONCE)
        missing = limit and await self._tx.read(leases.waiting, lane.value, stale_ms=stale)
        if missing:
            job_ids = await self._tx(leases.unhinted, lane.value, stale_ms=stale, limit=limit)
            self._hints.send(lane, job_ids)

    def _lost(self, job_ids: list[str]) -> None:
        """From the thread of the hints: these were not sent."""
        asyncio.run_coroutine_threadsafe(self._tx(leases.forget_hints, job_ids), self._loop)
