"""What a process does with limits when Redis hangs, and what it tells one that forgot."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import redis
from sqlalchemy import create_engine

from api.meters import CONCURRENCY, REQUESTS, Bounds, Meter, Want, meters
from api.throttle import Throttle
from shared import connections
from shared.db import Transactions
from shared.errors import RateLimited
from shared.limits import Limits
from tests.valkey import Valkey

WITHIN = 4.0
"""Seconds for what waits less than a second each time; Redis' own timeouts are longer."""


@asynccontextmanager
async def opened(server: Valkey) -> AsyncIterator[Throttle]:
    """A process' throttle."""
    client = connections.open_redis(server.url)
    tx = Transactions(create_engine("sqlite://"))
    started = Throttle(client, tx, renew_every=0.1)
    started.start()
    try:
        yield started
    finally:
        await started.stop()
        tx.close()
        await client.aclose()


@contextmanager
def frozen(server: Valkey) -> Iterator[None]:
    """Redis takes connections and says nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def wanting(limits: Limits) -> list[Meter]:
    """The meters of one request of an account with these limits."""
    want = Want(requests=1, tokens=10, concurrency=1)
    return meters("a", {Bounds("account", "a", limits): want})


async def test_no_answer_waits_for_a_redis_that_hangs(redis_server: Valkey) -> None:
    """It is counted here, by the same rules, and given back here."""
    wanted = wanting(Limits(requests_per_minute=2, concurrency=5))
    async with opened(redis_server) as counted:
        with frozen(redis_server):
            async with asyncio.timeout(WITHIN):
                _, shared = await counted.take(wanted, "first")
                await counted.take(wanted, "second")
                with pytest.raises(RateLimited, match="2 requests per minute"):
                    await counted.take(wanted, "third")
                back = {each.key: -each.share(1) for each in wanted if each.unit == REQUESTS}
                places = [each.key for each in wanted if each.unit == CONCURRENCY]
                await counted.give(back, places, "first", shared=shared)
                readings, _ = await counted.take(wanted, "fourth")

    assert not shared
    assert [reading.remaining for reading in readings] == [0, 3]


async def test_a_redis_that_forgot_is_told_what_is_open(redis_server: Valkey) -> None:
    """By the next renewal, so that other processes know as well; and when it ends."""
    wanted = wanting(Limits(concurrency=1))
    async with opened(redis_server) as ours, opened(redis_server) as theirs:
        await ours.take(wanted, "open")
        with redis.Redis(port=redis_server.port) as server:
            server.flushall()

        await _until(theirs, wanted, 0)
        with pytest.raises(RateLimited):
            await theirs.take(wanted, "other")
        await ours.give({}, [wanted[0].key], "open", shared=True)
        await _until(theirs, wanted, 1)


async def _until(looks: Throttle, wanted: list[Meter], remaining: int) -> None:
    async with asyncio.timeout(20):
        while (await looks.left("a", [wanted[0].bounds]))[0].remaining != remaining:
            await asyncio.sleep(0.02)
