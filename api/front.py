"""Everything one api process works with, opened and closed in the right order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.attendance import Attendance
from api.backlog import Backlog
from api.callers import Callers
from api.holds import Holds
from api.hub import Hub
from api.middleware import Metrics
from api.progress import Watches
from api.settings import ApiSettings
from api.throttle import Throttle
from api.tokens import Tokens
from api.window import Window
from shared import catalog, connections, db, hints, reload, standing, streams
from shared.catalog import Catalog
from shared.errors import ModelNotFound
from shared.lately import Forgotten, Lately
from shared.sending import Hints
from shared.standing import Standing
from shared.storage import Storage
from shared.tables import Job

log = structlog.get_logger()

LAST_HINTS_WITHIN: Final = timedelta(seconds=2)
"""For the hints that still wait when the process ends; the feeder sends what is left."""


class Front:
    """What routes share in one process."""

    def __init__(
        self,
        settings: ApiSettings,
        *,
        tx: db.Transactions,
        redis: Redis,
        catalog: Catalog,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.tx = tx
        self.redis = redis
        self.catalog = catalog
        self.metrics = metrics
        self.storage = Storage(settings.file_store)
        self.callers = Callers(tx, Tokens(settings))
        self.hub = Hub(redis)
        self.watches = Watches(tx)
        self.attendance = Attendance(tx, settings.disconnect_grace)
        self.window = Window(redis, settings.hint_window)
        self.backlog = Backlog(tx, settings.queue_limit)
        self.holds = Holds(tx, metrics)
        self.throttle = Throttle(redis, tx)
        self.hints = Hints(redis, lambda lost: tx(hints.forget, lost))
        self.draining = False
        """What is held open has to end now: this process is about to stop."""
        self._lately = Lately()
        self._places = partial(standing.look_all, lately=self._lately)
        self._turns = partial(standing.look_each, lately=self._lately)
        self._loop = asyncio.get_running_loop()

    def reload(self) -> None:
        """Read the catalogue anew, soon: a signal's handler may call this."""

        def take() -> None:
            self.catalog = reload.again(self.settings.catalog, self.catalog)

        self._loop.call_soon_threadsafe(take)

    def drain(self) -> None:
        """End what is held open, each in its own way; its client goes on elsewhere."""
        self.draining = True
        self.hub.wake()
        self.watches.wake()

    async def standing(self, job: Job, *, new: bool = False) -> Standing | None:
        """The place in its lane of a job that waits; without a hint, as of the last second.

        `new`: it has just been accepted here, and those before it may tell it its place, also with
        a hint if it does not start soon.
        """
        if not standing.waits(job):
            return None
        capped = False
        with suppress(ModelNotFound):
            capped = self.catalog.find(job.model).running is not None
        asked = standing.Asked(job, capped, new)
        if new:
            with suppress(Forgotten):
                return standing.foretell(asked, self._lately)
        if job.hinted_at is not None:
            return await self.tx.look(self._places, asked)
        return await self.tx.look(self._turns, asked, long=True)

    async def forget(self, job: Job) -> None:
        """Delete a deleted job's log."""
        try:
            async with streams.promptly():
                await self.redis.delete(streams.log_name(job.id))
        except (RedisError, OSError) as error:
            log.warning("log_not_deleted", job_id=job.id, error=str(error))  # it expires


@asynccontextmanager
async def lifespan(settings: ApiSettings, metrics: Metrics) -> AsyncIterator[Front]:
    """Open the front and close it. Nothing here waits for database or Redis to be there."""
    redis = connections.open_redis(settings.redis)
    tx = db.Transactions(db.connect(settings.database))
    front = Front(
        settings, tx=tx, redis=redis, catalog=catalog.load(settings.catalog), metrics=metrics
    )
    front.hints.start()
    front.hub.start()
    front.attendance.start()
    front.window.start()
    front.backlog.start()
    front.holds.start()
    try:
        yield front
    finally:
        await front.throttle.stop()
        await front.holds.stop()
        await front.backlog.stop()
        await front.window.stop()
        await front.attendance.stop()
        await front.hub.stop()
        await front.hints.close(LAST_HINTS_WITHIN)
        tx.close()
        await connections.close(redis)
