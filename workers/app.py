"""The Celery app of the workers: its tasks, of one line each, and the beat's schedule."""

import logging
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from celery import Celery
from celery.apps.beat import Beat
from celery.exceptions import SecurityWarning

from shared import ids, jobs, queue
from shared import log as logs
from workers import attempts, bench
from workers.pool import run_worker
from workers.settings import WorkerSettings

log = structlog.get_logger()

TASK_MARGIN = 300.0
"""Seconds a task may take beyond the attempt's upstream call, to settle."""
PRUNE_EVERY = 600.0
"""Seconds between two clean-ups."""
PRUNE_AT_ONCE = 200


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

    async def drain() -> None:
        await opened[0].drain()

    @app.task(name=queue.RUN_JOB, shared=False)
    async def run_job(job_id: str) -> None:
        await attempts.run(opened[0], job_id)

    @app.task(name=queue.PRUNE, shared=False)
    async def prune() -> None:
        await prune_jobs(opened[0])

    app.lifespan = lifespan
    app.drain = drain
    return app


async def prune_jobs(at: bench.Bench) -> None:
    """Delete what is older than the retention, in small transactions."""
    older_than = round(at.settings.retention.total_seconds() * 1000)
    while gone := await at.tx(jobs.prune, older_than, PRUNE_AT_ONCE):
        log.info("pruned", jobs=len(gone))


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
            "options": {"queue": queue.MAINTENANCE, "expires": PRUNE_EVERY},
        }
    }
    # In memory: every entry is idempotent, so a schedule that starts anew harms nothing.
    Beat(app=app, scheduler="celery.beat:Scheduler", max_interval=5, quiet=True).run()
    return 0
