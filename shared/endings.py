"""Jobs that end in no worker's hands: tell whoever reads them, and number the end in the row."""

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import update
from sqlmodel import Session, col

from shared import buckets, streams
from shared.db import Transactions
from shared.errors import Unavailable
from shared.lifecycle import TERMINAL
from shared.tables import Job

log = structlog.get_logger()


async def announce(tx: Transactions, redis: Redis, job: Job) -> None:
    """Close an ended job's log, or tell the worker of one that was asked to stop.

    Call it after the commit. Readers and workers look at the row, so what fails here costs a delay.
    """
    try:
        if job.status in TERMINAL:
            await (_close(tx, redis, job) if job.batch_id is None else _ring(redis, job))
        elif job.worker_id is not None:
            async with streams.promptly():
                await redis.publish(streams.control_channel(job.worker_id), job.id)
    except (RedisError, OSError, Unavailable) as error:
        log.warning("end_not_announced", job_id=job.id, error=str(error))


async def _close(tx: Transactions, redis: Redis, job: Job) -> None:
    async with streams.promptly():
        seq = await streams.close(redis, job.id, job.attempt, job.status, job.error)
    await buckets.put_right(redis, [job])
    if seq > job.last_seq:
        await tx(_number, job.id, seq)


async def _ring(redis: Redis, job: Job) -> None:
    """Lines of batches have no log."""
    async with streams.promptly():
        await streams.ring_end(redis, job.id, job.attempt, job.status, job.error)


def _number(session: Session, job_id: str, seq: int) -> None:
    """The log's last entry has this number: a reader who has seen it has seen everything."""
    session.execute(update(Job).where(col(Job.id) == job_id).values(last_seq=seq))
