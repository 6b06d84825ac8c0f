"""Everything one worker process works with, opened and closed in the right order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import structlog
from redis.asyncio import Redis

from shared import catalog, connections, db, hints, reload
from shared.catalog import Catalog
from shared.errors import Unavailable
from shared.storage import Storage
from workers import upstreams
from workers.batching import Batching
from workers.control import Control
from workers.deliveries import Deliveries
from workers.hands import Hands
from workers.heartbeat import Heartbeat
from workers.pace import Pace
from workers.publisher import Publisher
from workers.refunds import Refunds
from workers.remainders import Remainders
from workers.settings import WorkerSettings
from workers.targets import Breakers
from workers.upstreams.connections import Connections
from workers.upstreams.protocol import Upstream

log = structlog.get_logger()

STOP_WITHIN = 10.0
"""Seconds that handing the jobs back may take."""


class Bench:
    """What attempts share in one process."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        tx: db.Transactions,
        redis: Redis,
        catalog: Catalog,
        open_upstreams: Callable[[Catalog], dict[str, Upstream]],
    ) -> None:
        self.settings = settings
        self.tx = tx
        self.redis = redis
        self.catalog = catalog
        self.storage = Storage(settings.file_store)
        self.upstreams = open_upstreams(catalog)
        self._open_upstreams = open_upstreams
        self.breakers = Breakers(redis)
        self.refunds = Refunds(redis)
        self.hands = Hands()
        self.pace = Pace(self.hands)
        self.publisher = Publisher(redis, self.pace, bound=settings.publish_buffer)
        self.remainders = Remainders(tx, within=settings.attempt_timeout)
        self.deliveries = Deliveries(settings, tx)
        self.draining = False
        self.heartbeat = Heartbeat(settings, tx, redis, models=self._served(), hands=self.hands)

    def reload(self) -> None:
        """Read the catalogue anew. Attempts under way end with the upstream they have."""
        self.catalog = reload.again(self.settings.catalog, self.catalog)
        self.upstreams = self._open_upstreams(self.catalog)
        self.heartbeat.offer(self._served())

    def _served(self) -> list[str]:
        models = self.catalog.models.items()
        return sorted(name for name, model in models if model.upstream in self.upstreams)

    async def drain(self, late: Sequence[str] = ()) -> None:
        """Take no more jobs, let those that run finish for a while, hand the rest back.

        `late`: jobs whose hints came and were not looked at.
        """
        self.draining = True
        forgetting = asyncio.create_task(self.let_go(late)) if late else None
        log.info("draining", jobs=len(self.hands))
        grace = self.settings.drain.total_seconds()
        for seconds in (grace, STOP_WITHIN):
            try:
                async with asyncio.timeout(seconds):
                    await self.hands.empty.wait()
                    break
            except TimeoutError:
                self.hands.stop_all("handed_back")
        if forgetting is not None:
            await forgetting

    async def let_go(self, job_ids: Sequence[str]) -> None:
        """Forget that these were hinted: the feeder sends another hint, to whoever has room.

        Without the database the hint grows old instead.
        """
        with suppress(Unavailable):
            await self.tx(hints.forget, list(job_ids))


@asynccontextmanager
async def lifespan(settings: WorkerSettings) -> AsyncIterator[Bench]:
    """Open a bench, keep its lease and its control loops going, and close it."""
    redis = connections.open_redis(settings.redis)
    tx = db.Transactions(db.connect(settings.database))
    models = catalog.load(settings.catalog)
    with Connections() as to_upstreams:
        opener = partial(upstreams.open_upstreams, to_upstreams, settings=settings)
        bench = Bench(settings, tx=tx, redis=redis, catalog=models, open_upstreams=opener)
        control = Control(settings, tx, redis, lambda: bench.catalog)
        batching = Batching(
            settings,
            tx,
            redis,
            bench.storage,
            catalog=lambda: bench.catalog,
            leads=lambda: control.leader is not None,
        )
        bench.publisher.start()
        await bench.heartbeat.start()
        control.start()
        batching.start()
        bench.deliveries.start()
        try:
            yield bench
        finally:
            bench.draining = True
            # At once: each may wait a few seconds for what does not answer.
            async with asyncio.TaskGroup() as leaving:
                for part in (bench.heartbeat, bench.deliveries, batching, control):
                    leaving.create_task(part.stop())
            await bench.remainders.stop()
            await bench.publisher.stop()
            await bench.refunds.stop()
            await asyncio.to_thread(tx.close)
            await connections.close(redis)
