"""What a process does with limits when Redis hangs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import create_engine

from api.meters import Bounds, Meter, Want, meters
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
    started = Throttle(client, tx)
    try:
        yield started
    finally:
        await started.stop()
        tx.close()
        await client.aclose()


def wanting(limits: Limits) -> list[Meter]:
    """The meters of one request of an account with these limits."""
    want = Want(requests=1, tokens=10)
    return meters("a", {Bounds("account", "a", limits): want})


async def test_no_answer_waits_for_a_redis_that_hangs(redis_server: Valkey) -> None:
    """It is counted here, by the same rules, and given back here."""
    wanted = wanting(Limits(requests_per_minute=2))
    async with opened(redis_server) as counted:
        with redis_server.frozen():
            async with asyncio.timeout(WITHIN):
                _, shared = await counted.take(wanted)
                await counted.take(wanted)
                with pytest.raises(RateLimited, match="2 requests per minute"):
                    await counted.take(wanted)
                back = {each.key: -each.share(1) for each in wanted}
                await counted.give(back, shared=shared)
                [reading], _ = await counted.take(wanted)

    assert not shared
    assert reading.remaining == 0
