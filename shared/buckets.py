"""Tokens a minute: the buckets in Redis, and what a job in the background took of them.

Who waits for an answer has its api put right what was set aside. Nobody waits for a job in the
background, so a note of what it took lies in Redis, and whoever ends the job takes the note.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared import streams
from shared.lifecycle import JobStatus
from shared.tables import Job

log = structlog.get_logger()

MINUTE: Final = 60_000_000
"""Microseconds in which an empty bucket is full again."""

# Moves buckets by so many microseconds each, down or up, whatever room there is.
ADJUST: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i, key in ipairs(KEYS) do
  local used = math.max(0, (tonumber(redis.call('GET', key)) or 0) - now) + ARGV[i]
  if used > 0 then
    redis.call('SET', key, string.format('%.0f', now + used), 'PX', math.ceil(used / 1000))
  else
    redis.call('DEL', key)
  end
end
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """The tokens that were set aside for a job."""

    tokens: int
    limits: Mapping[str, int]
    """Tokens a minute, by the keys of the buckets that they were taken from."""


def share(tokens: int, limit: int) -> int:
    """How long, in microseconds, a bucket of this limit takes to refill with so many."""
    return tokens * MINUTE // limit


def used(job: Job) -> int | None:
    """The tokens an ended job took; None when nobody counted."""
    if job.usage is None:
        return None if job.status == JobStatus.COMPLETED else 0
    total = job.usage.get("total_tokens")
    return total if isinstance(total, int) else None


async def note(redis: Redis, account_id: str, taken: Mapping[str, Taken]) -> None:
    """Write down what these jobs took; a minute later nothing is left to put right.

    Raises what redis-py raises.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for job_id, one in taken.items():
            written = orjson.dumps([one.tokens, dict(one.limits)])
            pipe.set(_key(account_id, job_id), written, px=MINUTE // 1_000)
        await pipe.execute()


async def put_right(redis: Redis, ended: Iterable[Job]) -> None:
    """Give back what ended jobs set aside and did not take, once; or take what they took beyond.

    Without Redis it stays as it is: a bucket refills by itself.
    """
    counted = [(job, total) for job in ended if (total := noted(job)) is not None]
    if not counted:
        return
    keys = [_key(job.account_id, job.id) for job, _ in counted]
    try:
        async with streams.promptly(), redis.pipeline(transaction=False) as pipe:
            if not any(await redis.mget(keys)):  # mostly nothing was set aside
                return
            for key in keys:  # whoever gets a note is the only one who does
                pipe.getdel(key)
            notes = await pipe.execute()
            for (_, total), written in zip(counted, notes, strict=True):
                if written is not None:
                    tokens, limits = orjson.loads(written)
                    own = [share(total, each) - share(tokens, each) for each in limits.values()]
                    pipe.eval(ADJUST, len(limits), *limits, *own)
            await pipe.execute()
    except (RedisError, OSError) as error:
        log.warning("tokens_not_put_right", jobs=[job.id for job, _ in counted], error=str(error))


def noted(job: Job) -> int | None:
    """The tokens an ended job took, if there may be a note of what it set aside."""
    return used(job) if job.background and job.batch_id is None else None


def _key(account_id: str, job_id: str) -> str:
    return f"sluice:{{{account_id}}}:taken:{job_id}"
