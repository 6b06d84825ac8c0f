"""What a request takes of its caller's limits, and when that is given back.

The tokens that were set aside are put right when the answer is there, if that is within the minute.
What came to nothing takes nothing. Places among those open at once are not taken here: they are
counted from the rows of jobs, in the transaction that accepts one more.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlmodel import Session

from api import meters
from api.callers import Caller
from api.counters import Local, Shared
from api.meters import CONCURRENCY, TOKENS, Bounds, Meter, Reading, Want
from shared import background, buckets, jobs, places, streams
from shared.buckets import Taken
from shared.catalog import Catalog
from shared.db import Transactions
from shared.errors import ServiceError
from shared.jobs import Submission
from shared.tables import Job

log = structlog.get_logger()


class Throttle:
    """The counters of a process: Redis' while it answers, its own otherwise."""

    def __init__(self, redis: Redis, tx: Transactions) -> None:
        self.tx = tx
        self._redis = redis
        self._shared = Shared(redis)
        self._local = Local()
        self._away = False
        self._late: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Wait for nothing any more: what is not given back refills."""
        await background.stop(*self._late)

    def admission(self, caller: Caller) -> "Admission":
        """For one request of a caller; it ends with the request's answer."""
        return Admission(self, caller)

    async def take(self, wanted: Sequence[Meter]) -> tuple[list[Reading], bool]:
        """How far each bucket is with what is wanted, and whether that is in Redis.

        Raises `RateLimited`, and then nothing was taken.
        """
        if (never := meters.impossible(wanted)) is not None:
            raise never
        taken, readings, shared = await self._take(wanted)
        if not taken:
            raise meters.refusal(readings)
        return readings, shared

    async def left(
        self, account_id: str, bounds: Iterable[Bounds], catalog: Catalog
    ) -> list[Reading]:
        """How far all meters are. Raises `Unavailable` when places cannot be counted."""
        rates, counts = _parted(meters.meters(account_id, dict.fromkeys(bounds, Want())))
        _, readings, _ = await self._take(rates) if rates else (True, [], True)
        if counts:
            taken = await self.tx.read(places.taken, account_id)
            readings += meters.counted(counts, taken, catalog)
        return readings

    async def give(self, changes: Mapping[str, int], *, shared: bool) -> None:
        """Move buckets by so many microseconds each."""
        if not shared:
            self._local.adjust(changes)
        elif changes:
            # A late Redis is not waited for, but it should hear of this all the same.
            task = asyncio.create_task(self._adjust(changes))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            await asyncio.wait({task}, timeout=streams.PROMPTLY)

    async def note(self, account_id: str, taken: Mapping[str, Taken]) -> None:
        """Leave word of what these jobs took, for whoever ends them."""
        try:
            async with streams.promptly():
                await buckets.note(self._redis, account_id, taken)
        except (RedisError, OSError) as error:
            self._lost(error)

    async def _take(self, wanted: Sequence[Meter]) -> tuple[bool, list[Reading], bool]:
        try:
            async with streams.promptly():
                taken, readings = await self._shared.take(wanted)
        except (RedisError, OSError) as error:
            self._lost(error)
            return *self._local.take(wanted), False
        self._back()
        return taken, readings, True

    async def _adjust(self, changes: Mapping[str, int]) -> None:
        try:
            await self._shared.adjust(changes)
        except (RedisError, OSError) as error:
            self._lost(error)  # they refill

    def _lost(self, error: Exception) -> None:
        if not self._away:
            log.warning("limits_counted_here", error=repr(error))
        self._away = True

    def _back(self) -> None:
        if self._away:
            log.info("limits_counted_in_redis")
            self._local.tidy()
        self._away = False


class Admission:
    """What one request has taken."""

    def __init__(self, throttle: Throttle, caller: Caller) -> None:
        self.headers: dict[str, str] = {}
        """What its answer says of the limits."""
        self._throttle = throttle
        self._account_id = caller.account_id
        self._own = caller.bounds
        self._catalog: Catalog
        self._taken: list[Meter] = []
        self._counts: list[Meter] = []
        self._before: list[Reading] = []
        self._shared = True
        self._taken_at = 0.0
        self._kept: Sequence[Job] = ()
        self._noted: dict[str, Taken] = {}
        """What jobs in the background take, which are put right by whoever ends them."""

    async def take(self, catalog: Catalog, submissions: Sequence[Submission]) -> None:
        """Take the requests and tokens that they need, all of it. Raises `RateLimited`."""
        wants: dict[Bounds, Want] = {}
        for new in submissions:
            bounds = (*self._own, *meters.bounds_of(catalog.find(new.model)))
            if not bounds:
                continue
            tokens = new.prompt_tokens + new.output_tokens
            one = Want(requests=1, tokens=tokens, concurrency=int(not new.background))
            own = dict.fromkeys(bounds, one)
            wants |= {each: wants.get(each, Want()) + one for each in own}
            if new.background:
                found = meters.meters(self._account_id, own)
                limits = {meter.key: meter.limit for meter in found if meter.unit == TOKENS}
                self._noted |= {new.job_id: Taken(tokens, limits)} if limits else {}
        rates, counts = _parted(meters.meters(self._account_id, wants))
        if rates:
            readings, self._shared = await self._throttle.take(rates)
            self._taken, self._taken_at = rates, time.monotonic()
            self._before = [reading.before for reading in readings]
            self.headers = meters.headers(readings)
        self._catalog, self._counts = catalog, [meter for meter in counts if meter.wanted]

    @property
    def counts(self) -> bool:
        """Whether `check` has anything to count."""
        return bool(self._counts)

    @property
    def accepted(self) -> bool:
        """Whether there is a job."""
        return bool(self._kept)

    def check(self, session: Session) -> None:
        """Raise `RateLimited` if no place is free; in the transaction that takes one."""
        taken = places.taken_for_sure(session, self._account_id)
        readings = meters.counted(self._counts, taken, self._catalog)
        if any(reading.wait for reading in readings):
            raise meters.refusal([*self._before, *readings])

    async def keep(self, accepted: Sequence[Job]) -> None:
        """It became these jobs; otherwise its end gives everything back."""
        self._kept = accepted
        if self._noted and self._shared:
            await self._throttle.note(self._account_id, self._noted)

    async def end(self) -> None:
        """Give back what is needed no longer; again is harmless."""
        taken, self._taken = self._taken, []
        if self._kept:
            taken = [meter for meter in taken if meter.unit == TOKENS]
        used = await self._used() if taken and self._kept else 0
        if used is not None:
            changes = {m.key: m.share(used) - m.share(m.wanted) for m in taken}
            await self._throttle.give(changes, shared=self._shared)

    async def _used(self) -> int | None:
        """The tokens of a job that was waited for, if it ended in time; None: who knows."""
        [job, *others] = self._kept
        old = time.monotonic() - self._taken_at > buckets.MINUTE / 1_000_000
        if others or job.background or old:
            return None
        try:
            row = await self._throttle.tx.read(jobs.find, job.account_id, job.id)
        except ServiceError:
            return None
        return None if row.completed_at is None else buckets.used(row)


def _parted(wanted: Sequence[Meter]) -> tuple[list[Meter], list[Meter]]:
    """Those counted by the minute, and those counted at once."""
    rates = [meter for meter in wanted if meter.unit != CONCURRENCY]
    return rates, [meter for meter in wanted if meter.unit == CONCURRENCY]
