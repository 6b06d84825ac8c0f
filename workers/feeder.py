"""Lets waiting jobs into the queue, a little at a time and everybody in turn.

What waits, waits in the database; the queue holds what will run within moments. So an account's
hundred thousand jobs delay another's single one by no more than those moments, and a priority, a
pause or a limit that changes holds at once.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlmodel import Session

from shared import background, clock, feeding, hints, leases, sources, streams
from shared.catalog import Catalog
from shared.db import Transactions
from shared.errors import ModelNotFound, Unavailable
from shared.feeding import Flight
from shared.lifecycle import Lane
from shared.queue import OVERFLOWS, queue_key
from shared.sending import Hints
from shared.sources import Source
from workers.allotment import Allotment
from workers.settings import WorkerSettings
from workers.turns import Turns

log = structlog.get_logger()

EVERY: Final = 0.2
"""Seconds between two looks while nobody waits."""
WHILE_BUSY: Final = 0.05
"""Seconds between two looks while there is more than the queue has room for."""
AT_ONCE: Final = 500
"""Jobs that one transaction lets in at most."""
SHORT_FOR: Final = 2.0
"""Seconds for which a batch that could not be paid for waits."""
TOGETHER: Final = 16
"""Lines that share a hint at most. To fetch one takes a worker longer than to claim ten jobs."""
OVERFLOWS_FOR: Final = 3
"""Seconds for which word of an overflow counts; it is repeated as long as it lasts."""


class Feeder:
    """Feeds the queue of every lane while this process leads."""

    def __init__(
        self,
        settings: WorkerSettings,
        tx: Transactions,
        redis: Redis,
        sender: Hints,
        catalog: Callable[[], Catalog],
        leader: Callable[[], str | None],
    ) -> None:
        self._window = settings.hint_window
        self._hint_ttl = clock.span(settings.hint_ttl)
        self._tx = tx
        self._redis = redis
        self._hints = sender
        self._catalog = catalog
        self._leader = leader
        """The name under which this process leads; None while it does not."""
        self._turns = {lane: (Turns(), dict[str, Turns]()) for lane in Lane}
        self._short: dict[str, float] = {}
        """Until when a batch that could not be paid for waits, by this process's own clock."""
        self._told = 0.0
        """When we last said that the queue overflows."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to feed; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="feeder")

    async def stop(self) -> None:
        """Let nobody in any more."""
        await background.stop(self._task)

    async def _run(self) -> None:
        while True:
            overflows = False
            try:
                if (leader := self._leader()) is not None:
                    overflows = await self._turn(leader)
            except (Unavailable, RedisError, OSError):
                await asyncio.sleep(1.0)  # nowhere to read from, or nowhere to send to
            except Exception:
                log.exception("feeder_broke")
                await asyncio.sleep(1.0)
            await asyncio.sleep(WHILE_BUSY if overflows else EVERY)

    async def _turn(self, leader: str) -> bool:
        """Fill the queues for which somebody waits; mostly nobody does, and one look tells."""
        due, lanes = await self._tx.read(_look)
        if due:
            await self._tx(feeding.come, due)
            lanes = list(Lane)
        return any([await self._feed(lane, leader) for lane in lanes])

    async def _feed(self, lane: Lane, leader: str) -> bool:
        """Fill a lane's queue; whether more will find room in a moment."""
        room = await self._room(lane)
        now = time.monotonic()
        self._short = {batch: until for batch, until in self._short.items() if until > now}
        found = await self._tx.read(sources.waiting, lane, max(0, room) + 1)
        willing = [source for source in found if source.batch_id not in self._short]
        if not willing:
            return False
        allotment = await self._allotment(willing)
        overflows = allotment.deal(max(0, room), *self._turns[lane])
        await self._tell(lane, overflows)
        chosen = await self._tx.read(sources.next_of, lane, allotment.places)
        for start in range(0, len(chosen), AT_ONCE):
            await self._let_in(lane, leader, chosen[start : start + AT_ONCE])
        return overflows and room > 0

    async def _room(self, lane: Lane) -> int:
        async with streams.promptly():
            depth = int(await self._redis.llen(queue_key(lane.value)))
        # What is out keeps its place, though it may not be in the queue yet, or no more.
        out = await self._tx.read(hints.out, lane.value, self._window)
        room = self._window - max(depth, out)
        if lane == Lane.BATCH:
            room = min(room, await self._tx.read(feeding.free, lane) - out)
        return room

    async def _allotment(self, found: Sequence[Source]) -> Allotment:
        limits = await self._tx.read(feeding.terms, {source.account_id for source in found})
        capped = _capped(self._catalog(), {source.model for source in found})
        bounded = any(each.running for each in limits.values())
        flight = Flight(Counter(), Counter(), Counter())
        if capped or bounded or any(source.at_once for source in found):
            flight = await self._tx.read(feeding.flight)
            capped = _capped(self._catalog(), flight.models.keys() | capped.keys())
        return Allotment(found, flight, limits, capped)

    async def _let_in(self, lane: Lane, leader: str, job_ids: Sequence[str]) -> None:
        done = await self._tx.alone(feeding.let_in, leader, job_ids, after_ms=self._hint_ttl)
        together = await self._together(len(done.hinted)) if lane == Lane.BATCH else 1
        self._hints.send(lane, done.hinted, together=together)
        for batch in done.short:
            self._short[batch] = time.monotonic() + SHORT_FOR

    async def _together(self, many: int) -> int:
        """How many share a hint: the more there is room for at once, the faster lines end. Few
        enough that each worker gets some."""
        workers = len(await self._tx.read(leases.alive))
        return max(1, min(TOGETHER, many // max(1, 2 * workers)))

    async def _tell(self, lane: Lane, overflows: bool) -> None:
        """Keep the front from overtaking those who wait here."""
        if lane == Lane.INTERACTIVE and overflows and time.monotonic() - self._told > 1.0:
            async with streams.promptly():
                await self._redis.set(OVERFLOWS, 1, ex=OVERFLOWS_FOR)
            self._told = time.monotonic()


def _look(session: Session) -> tuple[list[str], list[Lane]]:
    if not feeding.anybody(session):
        return [], []
    lanes = [lane for lane in Lane if sources.waiting(session, lane, 1)]
    return feeding.due(session, AT_ONCE), lanes


def _capped(catalog: Catalog, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    capped = {}
    for name in names:
        with suppress(ModelNotFound):
            model = catalog.find(name)
            if model.running is not None:
                capped[name] = (model.entry, model.running)
    return capped
