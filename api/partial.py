"""What a running job has said so far, put together from its log."""

import orjson
from redis.exceptions import RedisError

from api.front import Front
from shared import clock, ids, streams
from shared.chat import Transcript
from shared.tables import Job


async def partial_response(front: Front, job: Job) -> bytes | None:
    """A `chat.completion` of the last attempt's deltas; None when Redis cannot tell at once."""
    try:
        async with streams.promptly():
            entries = await streams.read(front.redis, job.id)
    except (RedisError, OSError):
        return None
    transcript = Transcript()
    for entry in streams.newest(entries):
        for line in entry.deltas:
            chunk = orjson.loads(line)
            transcript.add(chunk.get("choices") or [], chunk)
    return orjson.dumps(
        transcript.completion(
            id=ids.COMPLETION + job.id,
            created=clock.seconds(job.created_at) or 0,
            model=job.model,
        )
    )
