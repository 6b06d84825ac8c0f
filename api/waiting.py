"""Hold a request until its job ends, its time is up, or its client has left."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from redis.exceptions import RedisError

from api.exchange import leaving
from api.following import QUIET, QUIETEST
from api.front import Front
from api.hub import Bell
from shared import answers, streams
from shared.answers import Kept, Seen
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
        return await _attended(front, job, until, request, bell, anew=True)
    async with front.hub.listen(job.id) as new:
        new.miss()
        return await _attended(front, job, until, request, new, anew=False)


async def _attended(
    front: Front, job: Job, until: float, request: Request, bell: Bell, *, anew: bool
) -> Seen:
    """Wait for the bell's last message, and have it wake us when the client leaves."""
    left, wake = leaving(request.scope), bell.wake
    left.add_done_callback(wake)
    try:
        return await _heard(front, job, until, left, bell, anew=anew)
    finally:
        left.remove_done_callback(wake)


async def _heard(
    front: Front,
    job: Job,
    until: float,
    left: asyncio.Future[None],
    bell: Bell,
    *,
    anew: bool,
) -> Seen:
    """Wait for the bell's last message; look for ourselves when it missed something, is quiet for
    long, or did not bring the answer of a job that is `anew`."""

    def over() -> bool:
        return front.draining or left.done() or time.monotonic() >= until

    quiet, seen = QUIET, Seen(job)
    while True:
        end = await _end(bell, until, quiet, over)
        if anew and end is not None and (brought := _brought(job, end.fields)) is not None:
            return brought
        if not bell.missed:
            quiet = min(quiet * 2, QUIETEST)
        bell.caught_up()
        try:
            seen = await front.tx.look(answers.look_all, job.id)
        except Unavailable:  # the end waits for the database, as a stream's does
            if over() and not front.draining:
                raise
        if seen.job.status in TERMINAL or over():
            return seen


async def _end(
    bell: Bell, until: float, quiet: float, over: Callable[[], bool]
) -> streams.Entry | None:
    """The bell's last message; None when it missed something, is quiet for long, or it is over."""
    while not (bell.missed or over()):
        messages = await bell.wait(min(quiet, until - time.monotonic()))
        for entry in map(streams.parse_message, messages):
            if entry.kind == streams.END:
                return entry
        if not messages:
            break
    return None


def _brought(job: Job, end: Mapping[str, Any]) -> Seen | None:
    """The job as it ended, and its answer, if the last message had it; of the job's columns, those
    that an answer is made of."""
    answer = end.get("answer")
    if answer is None:
        return None
    job.status, job.cost, job.served_model = end["status"], answer["cost"], answer["served_model"]
    return Seen(job, Kept(answer["response"].encode(), answer["available"]))


async def last_entry(front: Front, job: Job) -> streams.Entry | None:
    """The log's last entry of a job under way; None when Redis cannot tell at once."""
    if job.status in TERMINAL or job.attempt == 0:
        return None
    try:
        async with streams.promptly():
            return await streams.last(front.redis, job.id)
    except (RedisError, OSError):
        return None
