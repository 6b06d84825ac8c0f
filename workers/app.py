"""The Celery app of the workers: its tasks, of one line each, and the beat's schedule."""

import logging
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from celery import Celery
from celery.apps.beat import Beat
from celery.exceptions import SecurityWarning
from celery.worker.request import Request

from shared import file_retention, ids, queue, retention
from shared import log as logs
from workers import bench, rounds
from workers.process import run_worker
from workers.settings import WorkerSettings

TASK_MARGIN = 300.0
"""Seconds a task may take beyond the attempt's upstream call, to settle."""
PRUNE_EVERY = 600.0
"""Seconds between two clean-ups."""
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Hint(Request):  # type: ignore[misc]
    """A message that the broker forgets when it hands it out: there is nothing to acknowledge."""

    def acknowledge(self) -> None:
        """Say nothing, which saves a round trip that the whole process would wait for."""
        self.acknowledged = True


def create_worker(settings: WorkerSettings) -> Celery:
    """A Celery app whose tasks work at one bench, which the pool opens on its loop."""
    app = queue.connect(settings.redis)
    # The attempt's own limit comes first; this one only catches what escaped it.
    app.conf.task_time_limit = settings.attempt_timeout.total_seconds() + TASK_MARGIN
    opened: list[bench.Bench] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with bench.lifespan(settings) as one:
            opened.append(one)
            yield

    async def drain(unbegun: Sequence[tuple[str, Sequence[str]]]) -> None:
        late = [job_id for name, ids in unbegun if name == queue.RUN_JOB for job_id in ids]
        await opened[0].drain(late)

    def reload() -> None:
        if opened:  # else it has yet to be read
            opened[0].reload()

    @app.task(name=queue.RUN_JOB, shared=False, Request=Hint, Strategy="workers.fetching:several")
    async def run_job(*job_ids: str, wait: bool = True) -> None:
        await rounds.run(opened[0], job_ids, app.spare, wait=wait)

    @app.task(name=queue.PRUNE, shared=False)
    async def prune() -> None:
        at = opened[0]
        await retention.enforce(
            at.tx,
            at.redis,
            jobs_for=settings.retention,
            contents_for=settings.content_retention,
        )
        await file_retention.enforce(at.tx, at.storage)

    app.lifespan = lifespan
    app.drain = drain
    app.reload = reload
    return app


def run(settings: WorkerSettings) -> int:
    """Run a worker in this process until SIGTERM; its exit code."""
    logs.configure(settings, "worker")
    # It objects to root because of pickle, and we take nothing but JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)  # a line per hint
    return run_worker(
        create_worker(settings),
        concurrency=settings.worker_concurrency,
        name=ids.random_letters(6),
        queues=queue.QUEUES,
        log_level=settings.log_level,
    )


def beat(settings: WorkerSettings) -> int:
    """Run the beat, which only starts slow maintenance, until SIGTERM; its exit code."""
    logs.configure(settings, "beat")
    app = queue.connect(settings.redis)
    app.conf.beat_schedule = {
        "prune": {
            "task": queue.PRUNE,
            "schedule": PRUNE_EVERY,
            # Due at once: a machine that never runs for as long as that is cleaned up as well.
            "last_run_at": LONG_AGO,
            "options": {"queue": queue.MAINTENANCE, "expires": PRUNE_EVERY},
        }
    }
    # In memory: every entry is idempotent, so a schedule that starts anew harms nothing.
    Beat(app=app, scheduler="celery.beat:Scheduler", max_interval=5, quiet=True).run()
    return 0
