"""The broker holds a bounded number of hints; what is beyond waits in the database."""

import asyncio

from api.window import Window
from shared import connections
from shared.lifecycle import Lane
from shared.queue import queue_key
from tests.valkey import Valkey


async def test_a_full_queue_admits_no_more_hints(redis_server: Valkey) -> None:
    """Until workers have made room; and batch jobs are never let in from the front."""
    redis = connections.open_redis(redis_server.url)
    window = Window(redis, 10)
    window.start()
    try:
        assert window.admits(Lane.INTERACTIVE)
        assert not window.admits(Lane.BATCH)

        window.sent(Lane.INTERACTIVE, 10)
        assert not window.admits(Lane.INTERACTIVE)
        await until(window, admits=True)

        await redis.rpush(queue_key(Lane.INTERACTIVE.value), *range(10))
        await until(window, admits=False)
    finally:
        await window.stop()
        await redis.aclose()


async def until(window: Window, *, admits: bool) -> None:
    """Wait for the next look at the queue."""
    async with asyncio.timeout(10):
        while window.admits(Lane.INTERACTIVE) is not admits:
            await asyncio.sleep(0.02)
