"""Everything one worker process works with, opened and closed in the right order."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import structlog
from redis.asyncio import Redis

from shared import catalog, db, queue, streams
from shared.catalog import Catalog
from workers import upstreams
from workers.control import Control
from workers.heartbeat import Heartbeat
from workers.publisher import Publisher
from workers.running import Running, Why
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
        self.running: dict[str, Running] = {}
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.heartbeat = Heartbeat(
            settings,
            tx,
            redis,
            models=sorted(
                name for name, model in catalog.models.items() if model.upstream in upstreams
            ),
            on_cancel=self.cancel,
            on_fenced=lambda: self.stop_all("fenced"),
        )

    @contextmanager
    def holding(self, running: Running) -> Iterator[None]:
        """This attempt is under way until the context ends."""
        job_id = running.claim.job.id
        self.running[job_id] = running
        self._idle.clear()
        try:
            yield
        finally:
            del self.running[job_id]
            if not self.running:
                self._idle.set()

    def cancel(self, job_id: str) -> None:
        """Stop a job's upstream call, if it runs here."""
        running = self.running.get(job_id)
        if running is not None:
            running.stop("cancelled")

    def stop_all(self, why: Why) -> None:
        """Stop every upstream call of the process."""
        for running in self.running.values():
            running.stop(why)

    async def drain(self) -> None:
        """Take no more jobs, let those that run finish for a while, hand the rest back."""
        self.draining = True
        log.info("draining", running=len(self.running))
        grace = self.settings.drain.total_seconds()
        for seconds in (grace, STOP_WITHIN):
            try:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
                    return
            except TimeoutError:
                self.stop_all("handed_back")


@asynccontextmanager
async def lifespan(settings: WorkerSettings) -> AsyncIterator[Bench]:
    """Open a bench, keep its lease and its control loops going, and close it."""
    redis = streams.open_redis(settings.redis)
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
            await control.stop()
            await bench.heartbeat.stop()
            await bench.publisher.stop()
            tx.close()
            await redis.aclose()
