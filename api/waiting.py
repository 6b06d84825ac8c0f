"""Hold a request until its job ends, its time is up, or its client has left."""

import asyncio
from contextlib import suppress

from fastapi import Request
from redis.exceptions import RedisError

from api.following import QUIET, QUIETEST
from api.front import Front
from api.hub import Bell
from api.sse import left
from shared import background, jobs, streams
from shared.errors import Unavailable
from shared.lifecycle import TERMINAL
from shared.tables import Job


async def until_ended(
    front: Front, job: Job, seconds: float, request: Request, *, bell: Bell | None = None
) -> Job:
    """The job once it has ended, or as it is after so many seconds, when the client has left, and
    when this process is about to stop.

    `bell`: it has listened to the job since before it was committed.
    """
    if job.status in TERMINAL or seconds <= 0:
        return job
    waiting = asyncio.ensure_future(_ended(front, job, bell))
    leaving = asyncio.ensure_future(left(request.receive))
    try:
        await asyncio.wait({waiting, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
    finally:
        await background.stop(waiting, leaving)
    return await front.tx.read(jobs.find, job.account_id, job.id)


async def _ended(front: Front, job: Job, bell: Bell | None) -> Job:
    if bell is not None:
        return await _heard(front, job, bell)
    async with front.hub.listen(job.id) as new:
        new.miss()
        return await _heard(front, job, new)


async def _heard(front: Front, job: Job, bell: Bell) -> Job:
    """Wait for the bell's last message; look for ourselves when it missed something, or is quiet
    for long."""
    quiet = QUIET
    while True:
        while not bell.missed and not front.draining:
            messages = await bell.wait(quiet)
            ends = (streams.parse_message(each).kind == streams.END for each in messages)
            if not messages or any(ends):
                quiet = min(quiet * 2, QUIETEST)
                break
        bell.caught_up()
        with suppress(Unavailable):  # the end waits for the database, as a stream's does
            job = await front.tx.read(jobs.find, job.account_id, job.id)
        if job.status in TERMINAL or front.draining:
            return job


async def last_entry(front: Front, job: Job) -> streams.Entry | None:
    """The log's last entry of a job under way; None when Redis cannot tell at once."""
    if job.status in TERMINAL or job.attempt == 0:
        return None
    try:
        async with streams.promptly():
            return await streams.last(front.redis, job.id)
    except (RedisError, OSError):
        return None
