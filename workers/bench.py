"""Everything one worker process works with, opened and closed in the right order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import structlog
from redis.asyncio import Redis

from shared import catalog, connections, db, queue
from shared.catalog import Catalog
from workers import upstreams
from workers.control import Control
from workers.hands import Hands
from workers.heartbeat import Heartbeat
from workers.publisher import Publisher
from workers.settings import WorkerSettings
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
        upstreams: dict[str, Upstream],
    ) -> None:
        self.settings = settings
        self.tx = tx
        self.redis = redis
        self.catalog = catalog
        self.upstreams = upstreams
        self.publisher = Publisher(redis, bound=settings.publish_buffer)
        self.hands = Hands()
        self.draining = False
        served = [name for name, model in catalog.models.items() if model.upstream in upstreams]
        self.heartbeat = Heartbeat(settings, tx, redis, models=sorted(served), hands=self.hands)

    async def drain(self) -> None:
        """Take no more jobs, let those that run finish for a while, hand the rest back."""
        self.draining = True
        log.info("draining", jobs=len(self.hands))
        grace = self.settings.drain.total_seconds()
        for seconds in (grace, STOP_WITHIN):
            try:
                async with asyncio.timeout(seconds):
                    await self.hands.empty.wait()
                    return
            except TimeoutError:
                self.hands.stop_all("handed_back")


@asynccontextmanager
async def lifespan(settings: WorkerSettings) -> AsyncIterator[Bench]:
    """Open a bench, keep its lease and its control loops going, and close it."""
    redis = connections.open_redis(settings.redis)
    tx = db.Transactions(db.connect(settings.database))
    models = catalog.load(settings.catalog)
    celery = queue.connect(settings.redis)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60), auto_decompress=True
    ) as session:
        opened = upstreams.open_upstreams(session, models, settings)
        bench = Bench(settings, tx=tx, redis=redis, catalog=models, upstreams=opened)
        control = Control(settings, tx, redis, celery)
        bench.publisher.start()
        await bench.heartbeat.start()
        control.start()
        try:
            yield bench
        finally:
            bench.draining = True
            await bench.heartbeat.stop()
            await control.stop()
            await bench.publisher.stop()
            tx.close()
            await redis.aclose()
