"""Retention: what is deleted when it has been kept long enough, in small transactions."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, delete, exists, or_, tuple_, update
from sqlmodel import Session, col, select

from shared import clock, events, idempotency, streams
from shared.clock import database_now
from shared.db import Transactions
from shared.errors import Unavailable
from shared.lifecycle import JobStatus
from shared.tables import (
    Batch,
    Event,
    File,
    IdempotencyKey,
    Job,
    JobContent,
    JobMetadata,
    Worker,
)

log = structlog.get_logger()

AT_ONCE: Final = 200
"""Rows that one transaction takes away at most."""
REPORT_EVERY: Final = 10.0
"""Seconds between two lines in the log of a clean-up that takes long."""

Step = Callable[[Session, int, int], Sequence[object]]
"""Takes away at most so many (the last argument) of what ended that many milliseconds ago."""


async def enforce(
    tx: Transactions, redis: Redis, *, jobs_for: timedelta, contents_for: timedelta | None
) -> None:
    """Take away everything that has been kept long enough; `contents_for` None: as the job.

    Whatever ends it in between has lost nothing: the next run finds what is left. Two at once
    share the work.
    """
    try:
        # First what shows a batch's lines as a whole, then the lines.
        await _repeat(tx, redis, forget_batches, jobs_for)
        await _repeat(tx, redis, prune, jobs_for)
        if contents_for is not None:
            await _repeat(tx, redis, forget_outputs, contents_for)
            await _repeat(tx, redis, anonymise, contents_for)
        await _repeat(tx, redis, forget_keys, timedelta(milliseconds=idempotency.KEPT_FOR))
        await _repeat(tx, redis, forget_workers, jobs_for)
        await _repeat(tx, redis, forget_events, events.KEPT_FOR)
    except Unavailable as error:
        log.warning("retention_waits_for_database", error=error.message)


async def _repeat(tx: Transactions, redis: Redis, step: Step, kept_for: timedelta) -> None:
    older_than = clock.span(kept_for)
    done, reported = 0, time.monotonic()
    while True:
        began = time.monotonic()
        gone = await tx(step, older_than, AT_ONCE)
        done += len(gone)
        if step in (prune, anonymise):
            await _delete_logs(redis, [str(job_id) for job_id in gone])
        now = time.monotonic()
        last = len(gone) < AT_ONCE
        if done and (last or now - reported >= REPORT_EVERY):
            log.info(step.__name__, rows=done, more=not last)
            reported = now
        if last:
            return
        await asyncio.sleep(now - began)  # half of the time belongs to the others


async def _delete_logs(redis: Redis, job_ids: Sequence[str]) -> None:
    """Delete the logs that have not expired yet; one that is left here soon does."""
    if not job_ids:
        return
    try:
        await redis.unlink(*(streams.log_name(job_id) for job_id in job_ids))
    except (RedisError, OSError) as error:
        log.warning("logs_not_deleted", jobs=len(job_ids), error=str(error))


def _in_a_batch(*which: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(col(Batch.id) == col(Job.batch_id), *which)


def prune(session: Session, older_than_ms: int, limit: int) -> list[str]:
    """Delete the oldest jobs that ended longer ago than that; returns their ids.

    A batch's lines stay as long as it does.
    """
    due = (
        select(col(Job.id))
        .where(col(Job.completed_at) < database_now() - older_than_ms, ~_in_a_batch())
        .order_by(col(Job.completed_at))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    job_ids = list(session.exec(due).all())
    session.execute(delete(Job).where(col(Job.id).in_(job_ids)))
    return job_ids


def anonymise(session: Session, older_than_ms: int, limit: int) -> list[str]:
    """Delete what was asked and said in jobs that ended longer ago than that; returns their ids.

    Their rows stay, for the accounts. A batch's lines are as old as the batch.
    """
    oldest = database_now() - older_than_ms
    young = or_(col(Batch.ended_at).is_(None), col(Batch.ended_at) >= oldest)
    due = (
        select(col(Job.id))
        .where(
            col(Job.completed_at) < oldest,
            col(Job.content_deleted_at).is_(None),
            ~_in_a_batch(young),
        )
        .order_by(col(Job.completed_at))
        .limit(limit)
        .with_for_update(skip_locked=True)
        # With the index of all that ended it would wade through what is done already.
        .with_hint(Job, "INDEXED BY ix_jobs_with_content", "sqlite")
    )
    job_ids = list(session.exec(due).all())
    for table in (JobContent, JobMetadata):
        session.execute(delete(table).where(col(table.job_id).in_(job_ids)))
    session.execute(
        update(Job)
        .where(col(Job.id).in_(job_ids))
        # The fingerprint is a hash of the request: whoever guesses it can check the guess.
        .values(job_metadata=None, fingerprint=None, content_deleted_at=database_now())
        .execution_options(synchronize_session=False)
    )
    return job_ids


def forget_batches(session: Session, older_than_ms: int, limit: int) -> Sequence[object]:
    """Delete batches that ended longer ago than that, with their files; returns their ids.

    Their lines are jobs like any other from then on, and as old as they.
    """
    due = (
        select(col(Batch.id))
        .where(col(Batch.ended_at) < database_now() - older_than_ms)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    batch_ids = session.exec(due).all()
    session.execute(delete(File).where(col(File.batch_id).in_(batch_ids)))
    session.execute(delete(Batch).where(col(Batch.id).in_(batch_ids)))
    return batch_ids


def forget_outputs(session: Session, older_than_ms: int, limit: int) -> Sequence[object]:
    """Delete the files of batches that ended longer ago than that; returns their ids.

    What they show is about to go; what becomes of a line stays in the batch's results.
    """
    old = select(col(Batch.id)).where(col(Batch.ended_at) < database_now() - older_than_ms)
    due = select(col(File.id)).where(col(File.batch_id).in_(old)).limit(limit)
    file_ids = session.exec(due).all()
    session.execute(delete(File).where(col(File.id).in_(file_ids)))
    return file_ids


def forget_keys(session: Session, older_than_ms: int, limit: int) -> Sequence[object]:
    """Delete idempotency keys that are older than that; returns them."""
    key = (col(IdempotencyKey.account_id), col(IdempotencyKey.scope), col(IdempotencyKey.key))
    due = (
        select(*key)
        .where(col(IdempotencyKey.created_at) < database_now() - older_than_ms)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    keys = session.exec(due).all()
    session.execute(delete(IdempotencyKey).where(tuple_(*key).in_(keys)))
    return keys


def forget_events(session: Session, older_than_ms: int, limit: int) -> Sequence[object]:
    """Delete the oldest events that are older than that, with their deliveries; returns ids."""
    due = (
        select(col(Event.id))
        .where(col(Event.created_at) < database_now() - older_than_ms)
        .order_by(col(Event.created_at))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    event_ids = session.exec(due).all()
    session.execute(delete(Event).where(col(Event.id).in_(event_ids)))
    return event_ids


def forget_workers(session: Session, older_than_ms: int, limit: int) -> Sequence[object]:
    """Delete the workers that ended longer ago than that and hold no job; returns their ids."""
    holds = exists().where(
        col(Job.worker_id) == col(Worker.id), col(Job.status) == JobStatus.IN_PROGRESS.value
    )
    due = (
        select(col(Worker.id))
        .where(col(Worker.ended_at) < database_now() - older_than_ms, ~holds)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    worker_ids = session.exec(due).all()
    session.execute(delete(Worker).where(col(Worker.id).in_(worker_ids)))
    return worker_ids
