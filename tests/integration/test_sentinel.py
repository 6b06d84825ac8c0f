"""Connections by way of a Sentinel, on real servers."""

import asyncio
from pathlib import Path

from redis.asyncio import Redis

from shared.connections import open_redis
from tests.sentinel import sentinel
from tests.valkey import Valkey


async def test_more_commands_than_connections_wait_for_one(
    tmp_path: Path, redis_server: Valkey
) -> None:
    """As without a Sentinel: a burst is no outage."""
    with sentinel(tmp_path, redis_server) as url:
        redis: Redis = open_redis(url, connections=3)

        assert await asyncio.gather(*(redis.incr("count") for _ in range(300))) is not None
        assert await redis.get("count") == b"300"
        await redis.aclose()
