"""The loops that keep the queue honest, run by one elected process: sweep, rescue, expire, stop.

They need the database, not Redis; whoever holds the leader's row runs them, and every step is
guarded by the rows, so that two leaders at once would only do the same work twice.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared import (
    background,
    clock,
    deadlines,
    endings,
    feeding,
    hints,
    ids,
    leadership,
    leases,
    losses,
    streams,
)
from shared.catalog import Catalog
from shared.db import Transactions
from shared.errors import Unavailable
from shared.lifecycle import Lane
from shared.queue import queue_key, waiting
from shared.sending import Hints
from shared.tables import Job
from workers.feeder import Feeder
from workers.probation import Probation
from workers.settings import WorkerSettings

log = structlog.get_logger()

EVERY = 1.0
"""Seconds between two turns."""
AT_ONCE = 500
"""Rows that one step of a turn changes at most."""
LEADS_WITHIN = 10.0
"""Seconds of silence after which a leader is replaced; it may be wrong, for two do no harm."""
RESIGN_WITHIN = 2.0
"""Seconds that standing down may take; after that another takes over by itself."""
LAST_HINTS_WITHIN = timedelta(seconds=2)
"""For the hints that still wait then; another leader sends what is not sent."""
READERS_ARE_BACK = 30.0
"""Seconds after the database was away in which every api has noted who reads there."""
UNHEARD_FOR = 5.0
"""Seconds in which nobody listened, look after look: an api that lost Redis is back by then."""
LOOKS_AHEAD_MS = 10_000
"""Before a job lapses we begin to look, so that this costs no time."""
HEARD_FOR_MS = 30_000
"""For which whoever was heard counts as being there; an api that can write says otherwise."""
LONGEST_LOOK = 5.0
"""Seconds between two looks that count as silence, at most."""


class Stillness:
    """How long counters have stood still, by this process's own monotonic clock.

    When it takes long until we can look again, the database may have stood still, or we ourselves.
    """

    def __init__(self, longest_look: float = LONGEST_LOOK) -> None:
        self._longest_look = longest_look
        self._counters: dict[str, int] = {}
        self._still: dict[str, float] = {}
        self._looked = time.monotonic()

    def watch(self, counters: dict[str, int]) -> dict[str, float]:
        """Seconds for which each has not changed; those no longer there are forgotten."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, self._longest_look), now
        self._still = {
            name: self._still[name] + passed if self._counters.get(name) == counter else 0.0
            for name, counter in counters.items()
        }
        self._counters = counters
        return self._still

    def forget(self) -> None:
        """Begin anew: while we could not look, nobody else could write either."""
        self._counters = {}


class Control:
    """Stands for election, and turns the loops while elected.

    The workers are watched all the while, so that a new leader need not begin to.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        tx: Transactions,
        redis: Redis,
        catalog: Callable[[], Catalog],
    ) -> None:
        self._settings = settings
        self._tx = tx
        self._redis = redis
        self._me = ids.prefixed("ctl_")
        self._ttl = settings.lease_ttl.total_seconds()
        self._hint_ttl = clock.span(settings.hint_ttl)
        self._leader = Stillness()
        self._workers = Stillness()
        self._rival: tuple[str, int] | None = None
        self._away_at = -READERS_ARE_BACK
        """When the database was last found away."""
        self._unheard: dict[str, float] = {}
        """Jobs to which nobody listens, and since when, by `time.monotonic`."""
        self._hints = Hints(redis, lambda lost: tx(hints.forget, lost))
        self._probation = Probation(
            tx,
            self._hint,
            stale_ms=self._hint_ttl,
            lease_ms=clock.span(settings.lease_ttl),
        )
        self._feeder = Feeder(settings, tx, redis, self._hints, catalog, lambda: self.leader)
        self.leader: str | None = None
        """The name under which this process leads; None while it does not."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to turn; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="control")
        self._hints.start()
        self._feeder.start()

    async def stop(self) -> None:
        """Stand down, so that another process takes over at once."""
        self.leader = None
        await self._feeder.stop()
        await background.stop(self._task)
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(RESIGN_WITHIN):
                await self._tx(leadership.resign, feeding.ROLE, self._me)
        await self._hints.close(LAST_HINTS_WITHIN)

    async def _run(self) -> None:
        while True:
            try:
                still = self._workers.watch(await self._tx.read(leases.alive))
                self.leader = self._me if await self._elected() else None
                if self.leader:
                    await self._turn(still)
            except Unavailable as error:
                log.warning("control_waits_for_database", error=error.message)
                self._leader.forget()
                self._workers.forget()
                self._away_at = time.monotonic()
            except Exception:
                log.exception("control_turn_failed")
            await asyncio.sleep(EVERY)

    async def _elected(self) -> bool:
        holder, term = await self._tx(leadership.lead, feeding.ROLE, self._me, self._rival)
        taken_over, self._rival = self._rival is not None, None
        if holder == self._me:
            if taken_over:  # that one may have died of a database that was away for all
                self._away_at = time.monotonic()
            return True
        still = self._leader.watch({holder: term})[holder]
        if still >= min(self._ttl, LEADS_WITHIN):
            self._rival = (holder, term)
        return False

    async def _turn(self, still: dict[str, float]) -> None:
        await self._reap(still)
        await self._end(deadlines.expire, AT_ONCE)
        await self._end(deadlines.overdue, AT_ONCE)
        if time.monotonic() - self._away_at > READERS_ARE_BACK:
            await self._abandon()
        for lane in Lane:
            await self._sweep(lane)
        await self._probation.turn()

    async def _reap(self, still: dict[str, float]) -> None:
        """Presume workers dead that were silent for a whole lease, and take their jobs back."""
        for worker_id, seconds in still.items():
            if seconds >= self._ttl:
                log.error("worker_lost", worker_id=worker_id, silent_seconds=round(seconds))
                await self._tx(leases.retire, worker_id)
                self._probation.a_worker_was_lost()
        await self._end(losses.rescue, AT_ONCE)

    async def _abandon(self) -> None:
        """Give up the jobs whose readers are gone.

        An api that cannot write to the database cannot note who reads there, but it listens.
        """
        lapsing = await self._tx.read(deadlines.lapsing, LOOKS_AHEAD_MS, AT_ONCE)
        heard = await streams.listened_to(self._redis, lapsing) if lapsing else set()
        if heard is None:  # without Redis nobody can tell
            self._unheard = {}
            return
        if heard:
            read = {job_id: lapsing[job_id] for job_id in heard}
            await self._tx(deadlines.heard, read, HEARD_FOR_MS)
        now = time.monotonic()
        self._unheard = {
            job_id: self._unheard.get(job_id, now) for job_id in lapsing if job_id not in heard
        }
        gone = [job_id for job_id, since in self._unheard.items() if now - since >= UNHEARD_FOR]
        if gone:
            await self._end(deadlines.abandoned, gone)

    async def _end(self, step: Callable[..., Sequence[Job]], *arguments: object) -> None:
        """Run a step, then tell readers and workers what it did."""
        changed = await self._tx.alone(step, *arguments)
        if not changed:
            return
        log.info(step.__name__, jobs=[job.id for job in changed])
        await asyncio.gather(*(endings.announce(self._tx, self._redis, job) for job in changed))

    async def _sweep(self, lane: Lane) -> None:
        """Send again the hints that were lost."""
        window = self._settings.hint_window
        try:
            async with streams.promptly():
                depth = int(await self._redis.llen(queue_key(lane.value)))
            # New jobs may keep the window full for ever, so it is a little wider for these.
            lost = await self._vanished(lane, window + max(1, window // 10) - depth)
        except (RedisError, OSError):
            return  # nowhere to send them
        await self._hint(lane, lost)

    async def _vanished(self, lane: Lane, at_most: int) -> list[str]:
        """The jobs whose hint is old and not in the queue: it was lost with whoever had it.

        Age alone does not tell, for in a long queue all are old; nor do numbers, for a hint that is
        there twice hides one that is not. So the queue is read, if there is an old one.
        """
        if at_most <= 0 or not await self._old(lane, 1):
            return []
        there = await waiting(self._redis, lane)
        # Asked only now: what a worker took while we read is claimed, or is about to be.
        old = await self._old(lane, len(there) + at_most)
        return [job_id for job_id in old if job_id not in there][:at_most]

    async def _old(self, lane: Lane, limit: int) -> list[str]:
        return await self._tx.read(hints.stale, lane.value, after_ms=self._hint_ttl, limit=limit)

    async def _hint(self, lane: Lane, job_ids: Sequence[str]) -> None:
        """Hint these jobs, in short transactions, unless another leader has just done it."""
        for start in range(0, len(job_ids), AT_ONCE):
            some = job_ids[start : start + AT_ONCE]
            marked = await self._tx(hints.mark, some, after_ms=self._hint_ttl)
            self._hints.send(lane, marked)
