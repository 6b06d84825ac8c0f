"""Hold a request until its job ends, its time is up, or its client has left."""

import asyncio
import time

from fastapi import Request
from redis.exceptions import RedisError

from api.following import QUIET, QUIETEST
from api.front import Front
from api.hub import Bell
from api.sse import left
from shared import answers, streams
from shared.answers import Seen
from shared.errors import Unavailable
from shared.lifecycle import TERMINAL
from shared.tables import Job


async def until_ended(
    front: Front, job: Job, seconds: float, request: Request, *, bell: Bell | None = None
) -> Seen:
    """The job once it has ended, or as it is after so many seconds, when the client has left, and
    when this process is about to stop.

    `bell`: it has listened to the job since before it was committed.
    """
    if job.status in TERMINAL or seconds <= 0:
        return Seen(job)
    until = time.monotonic() + seconds
    if bell is not None:
        return await _attended(front, job, until, request, bell)
    async with front.hub.listen(job.id) as new:
        new.miss()
        return await _attended(front, job, until, request, new)


async def _attended(front: Front, job: Job, until: float, request: Request, bell: Bell) -> Seen:
    """Wait for the bell's last message, and have it wake us when the client leaves."""
    leaving = asyncio.ensure_future(left(request.receive))
    leaving.add_done_callback(lambda _: bell.wake())
    try:
        return await _heard(front, job, until, leaving, bell)
    finally:
        leaving.cancel()


async def _heard(
    front: Front, job: Job, until: float, leaving: asyncio.Future[None], bell: Bell
) -> Seen:
    """Wait for the bell's last message; look for ourselves when it missed something, or is quiet
    for long."""

    def over() -> bool:
        return front.draining or leaving.done() or time.monotonic() >= until

    quiet, seen = QUIET, Seen(job)
    while True:
        while not (bell.missed or over()):
            messages = await bell.wait(min(quiet, until - time.monotonic()))
            ends = (streams.parse_message(each).kind == streams.END for each in messages)
            if not messages or any(ends):
                quiet = min(quiet * 2, QUIETEST)
                break
        bell.caught_up()
        try:
            seen = await front.tx.look(answers.look_all, job.id)
        except Unavailable:  # the end waits for the database, as a stream's does
            if over() and not front.draining:
                raise
        if seen.job.status in TERMINAL or over():
            return seen


async def last_entry(front: Front, job: Job) -> streams.Entry | None:
    """The log's last entry of a job under way; None when Redis cannot tell at once."""
    if job.status in TERMINAL or job.attempt == 0:
        return None
    try:
        async with streams.promptly():
            return await streams.last(front.redis, job.id)
    except (RedisError, OSError):
        return None
