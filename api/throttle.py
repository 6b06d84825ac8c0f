"""What a request takes of its caller's limits, and when that is given back.

A place among those open at once ends with the answer. The tokens that were set aside are put right
then, if that is within the minute. What came to nothing takes nothing.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api import meters, sse
from api.counters import Local, Shared
from api.meters import CONCURRENCY, TOKENS, Bounds, Meter, Reading, Want
from shared import background, buckets, ids, jobs, streams
from shared.buckets import Taken
from shared.catalog import Catalog
from shared.db import Transactions
from shared.errors import ServiceError
from shared.jobs import Submission
from shared.tables import Job

log = structlog.get_logger()

RENEW_EVERY: Final = 10.0
"""Seconds between two renewals of what is open; a lease lasts for three."""


class Throttle:
    """The counters of a process: Redis' while it answers, its own otherwise."""

    def __init__(self, redis: Redis, tx: Transactions, *, renew_every: float = RENEW_EVERY) -> None:
        self.tx = tx
        self._redis = redis
        self._every = renew_every
        self._shared = Shared(redis)
        self._local = Local()
        self._away = False
        self._task: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to renew; needs the running loop."""
        self._task = asyncio.create_task(self._renew(), name="throttle")

    async def stop(self) -> None:
        """Stop renewing: what is open still lapses by itself."""
        await background.stop(self._task, *self._late)

    @asynccontextmanager
    async def admission(self, account_id: str, own: Sequence[Bounds]) -> AsyncIterator["Admission"]:
        """For one request and the limits of its key and account; ends with the request's answer."""
        admission = Admission(self, account_id, own)
        try:
            yield admission
        finally:
            await admission.end()

    async def take(self, wanted: Sequence[Meter], lease: str) -> tuple[list[Reading], bool]:
        """How far each meter is with what is wanted, and whether that is in Redis.

        Raises `RateLimited`, and then nothing was taken.
        """
        if (never := meters.impossible(wanted)) is not None:
            raise never
        shared = True
        try:
            async with streams.promptly():
                taken, readings = await self._shared.take(wanted, lease)
            self._back()
        except (RedisError, OSError) as error:
            self._lost(error)
            shared = False
            taken, readings = self._local.take(wanted, lease)
        if not taken:
            raise meters.refusal(readings)
        self._local.keep(_places(wanted), lease)
        return readings, shared

    async def left(self, account_id: str, bounds: Iterable[Bounds]) -> list[Reading]:
        """How far the meters are."""
        looked_at = meters.meters(account_id, dict.fromkeys(bounds, Want()))
        if not looked_at:
            return []
        try:
            async with streams.promptly():
                return (await self._shared.take(looked_at, ""))[1]
        except (RedisError, OSError) as error:
            self._lost(error)
            return self._local.take(looked_at, "")[1]

    async def give(
        self, changes: Mapping[str, int], places: Sequence[str], lease: str, *, shared: bool
    ) -> None:
        """Move buckets, and give up the lease at these places."""
        self._local.drop(places, lease)
        if not shared:
            self._local.adjust(changes)
            changes = {}
        if changes or places:
            # A late Redis is not waited for, but it should hear of this all the same.
            task = asyncio.create_task(self._adjust(changes, places, lease))
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

    async def _adjust(self, changes: Mapping[str, int], places: Sequence[str], lease: str) -> None:
        try:
            await self._shared.adjust(changes, places, lease)
        except (RedisError, OSError) as error:
            self._lost(error)  # it lapses, or refills

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            self._local.tidy()
            held = {key: frozenset(leases) for key, leases in self._local.leases.items()}
            try:
                await self._shared.renew(held)
                for key, leases in held.items():  # those that ended meanwhile are there again
                    for lease in leases - self._local.leases.get(key, set()):
                        await self._shared.adjust({}, [key], lease)
            except (RedisError, OSError) as error:
                self._lost(error)
            except Exception:  # without renewals all that is open would lapse
                log.exception("throttle_broke")

    def _lost(self, error: Exception) -> None:
        if not self._away:
            log.warning("limits_counted_here", error=repr(error))
        self._away = True

    def _back(self) -> None:
        if self._away:
            log.info("limits_counted_in_redis")
        self._away = False


class Admission:
    """What one request has taken."""

    def __init__(self, throttle: Throttle, account_id: str, own: Sequence[Bounds]) -> None:
        self.headers: dict[str, str] = {}
        """What its answer says of the limits."""
        self._throttle = throttle
        self._account_id = account_id
        self._own = own
        self._lease = ids.new_id()
        self._taken: list[Meter] = []
        self._shared = True
        self._taken_at = 0.0
        self._kept: Sequence[Job] = ()
        self._noted: dict[str, Taken] = {}
        """What jobs in the background take, which are put right by whoever ends them."""

    async def take(
        self, catalog: Catalog, submissions: Sequence[Submission], *, held: bool
    ) -> None:
        """Take what they need, all of it; `held`: their connection stays open for the answer.

        Raises `RateLimited`.
        """
        wants: dict[Bounds, Want] = {}
        for new in submissions:
            tokens = new.prompt_tokens + new.output_tokens
            one = Want(requests=1, tokens=tokens, concurrency=int(held))
            own = dict.fromkeys((*self._own, *meters.bounds_of(catalog.find(new.model))), one)
            wants |= {bounds: wants.get(bounds, Want()) + one for bounds in own}
            if new.background:
                found = meters.meters(self._account_id, own)
                limits = {meter.key: meter.limit for meter in found if meter.unit == TOKENS}
                self._noted |= {new.job_id: Taken(tokens, limits)} if limits else {}
        wanted = meters.meters(self._account_id, wants)
        if wanted:
            readings, self._shared = await self._throttle.take(wanted, self._lease)
            self._taken, self._taken_at = wanted, time.monotonic()
            self.headers = meters.headers(readings)

    async def keep(self, accepted: Sequence[Job]) -> None:
        """It became these jobs; otherwise its end gives everything back."""
        self._kept = accepted
        if self._noted and self._shared:
            await self._throttle.note(self._account_id, self._noted)

    async def before_done(self, frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """The same frames; its place is free before the client reads that the stream is over."""
        try:
            async for each in frames:
                if each.endswith(sse.DONE):
                    await self._free()
                yield each
        finally:
            await frames.aclose()
            await self._free()

    async def end(self) -> None:
        """Give back what is needed no longer; again is harmless."""
        await self._free()
        taken, self._taken = self._taken, []
        if self._kept:
            taken = [meter for meter in taken if meter.unit == TOKENS]
        used = await self._used() if taken and self._kept else 0
        if used is not None:
            await self._give(taken, used)

    async def _free(self) -> None:
        places = [meter for meter in self._taken if meter.unit == CONCURRENCY]
        self._taken = [meter for meter in self._taken if meter.unit != CONCURRENCY]
        await self._give(places, 0)

    async def _give(self, taken: Sequence[Meter], used: int) -> None:
        changes = {
            meter.key: meter.share(used) - meter.share(meter.wanted)
            for meter in taken
            if meter.unit != CONCURRENCY
        }
        await self._throttle.give(changes, _places(taken), self._lease, shared=self._shared)

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


def _places(wanted: Sequence[Meter]) -> list[str]:
    return [meter.key for meter in wanted if meter.unit == CONCURRENCY and meter.wanted]
