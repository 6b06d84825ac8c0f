"""What a job in the background set aside of the tokens a minute, put right by whoever ends it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from api.counters import Shared
from api.meters import Bounds, Meter, Want, meters
from shared import buckets, connections
from shared.buckets import Taken
from shared.limits import Limits
from shared.tables import Job
from tests.conftest import started_valkey
from tests.valkey import Valkey
from workers.refunds import Refunds

LIMIT = 60_000
TOKENS = 30_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One Valkey for all tests here."""
    with started_valkey(tmp_path_factory.mktemp("valkey")) as started:
        yield started


@pytest.fixture
async def redis(server: Valkey) -> AsyncIterator[Redis]:
    """An empty one."""
    client = connections.open_redis(server.url)
    await client.flushall()
    yield client
    await client.aclose()


def bucket(tokens: int = 0) -> list[Meter]:
    """An account's, of which so many are wanted."""
    limits = Limits(tokens_per_minute=LIMIT)
    return meters("acct_1", {Bounds("account", "acct_1", limits): Want(tokens=tokens)})


def ended(usage: int | None, status: str = "completed", **fields: Any) -> Job:
    """A job in the background at its end."""
    row: dict[str, Any] = {"id": "a", "account_id": "acct_1", "request_id": "r", "model": "m"}
    counted = None if usage is None else {"total_tokens": usage}
    return Job(**row | {"background": True, "status": status, "usage": counted} | fields)


async def accepted(redis: Redis) -> None:
    """A job took thirty thousand, half of what there is."""
    [meter] = wanted = bucket(TOKENS)
    await Shared(redis).take(wanted)
    await buckets.note(redis, "acct_1", {"a": Taken(TOKENS, {meter.key: meter.limit})})


async def left(redis: Redis) -> int:
    """Thousands of tokens; one comes back every second by itself."""
    [reading] = (await Shared(redis).take(bucket()))[1]
    return reading.remaining // 1_000


@pytest.mark.parametrize(
    "job, least, most",
    [
        (ended(10_000), 50, 55),
        (ended(40_000), 20, 25),
        (ended(None, "cancelled"), 60, 60),
        (ended(20_000, "cancelled"), 40, 45),
        (ended(None, "failed"), 60, 60),
        (ended(None), 30, 35),
        (ended(10_000, background=False), 30, 35),
        (ended(10_000, id="b"), 30, 35),
        (ended(10_000, account_id="acct_2"), 30, 35),
    ],
)
async def test_what_was_not_used_comes_back_once(
    redis: Redis, job: Job, least: int, most: int
) -> None:
    """However often its end is told, and whoever tells it; what nobody counted stays as it was."""
    await accepted(redis)

    for _ in range(3):
        await buckets.put_right(redis, [job])
    assert least <= await left(redis) <= most


async def test_those_that_ended_together_are_put_right_together(redis: Redis) -> None:
    """Each by its own note; one that has none changes nothing for the others."""
    await accepted(redis)

    await buckets.put_right(redis, [ended(1, id="b"), ended(10_000), ended(None)])
    assert 50 <= await left(redis) <= 55


async def test_a_worker_that_stops_has_put_right_what_its_jobs_took(redis: Redis) -> None:
    """Nobody waits for it at a job's end; those that end meanwhile share the next round trip."""
    await accepted(redis)
    refunds = Refunds(redis)

    refunds.owed(ended(1, id="b"))
    await asyncio.sleep(0)  # that one is under way
    refunds.owed(ended(10_000))
    await refunds.stop()
    assert 50 <= await left(redis) <= 55


async def test_after_its_minute_nothing_is_left_to_put_right(redis: Redis) -> None:
    """By then all of it has come back by itself, and others have taken of it."""
    await accepted(redis)
    [note] = [key async for key in redis.scan_iter("*taken*")]

    assert 0 < await redis.pttl(note) <= 60_000


async def test_without_redis_a_job_ends_all_the_same(server: Valkey) -> None:
    """The bucket refills by itself."""
    nowhere = connections.open_redis("redis://127.0.0.1:1/0")
    await buckets.put_right(nowhere, [ended(10_000)])
    await nowhere.aclose()
