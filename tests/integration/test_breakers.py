"""Breakers: when they open and close, who is let through, and what they cost."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from shared import breakers, connections
from shared.catalog import Model
from shared.errors import UpstreamOverloaded, UpstreamTimeout
from tests.valkey import Valkey
from workers.targets import Breakers, Target

LONG_AGO = timedelta(minutes=10)
NAME = "m"


@pytest.fixture
async def redis(redis_server: Valkey) -> AsyncIterator[Redis]:
    """A connection to a Valkey of the test's own."""
    opened = connections.open_redis(redis_server.url)
    yield opened
    await opened.aclose()


async def fail(redis: Redis, times: int = 1, **more: Any) -> None:
    """Calls that failed, one after the other."""
    for _ in range(times):
        await breakers.report(redis, NAME, failed=True, **more)


async def state(redis: Redis) -> str:
    """What everybody is shown."""
    return (await breakers.states(redis, [NAME]))[NAME]


async def let_through(redis: Redis) -> bool:
    """Whether somebody who asks may call."""
    return (await breakers.ask(redis, NAME)).lets_through


async def pass_time(redis: Redis, seconds: float) -> None:
    """Make all that the breaker remembers so much older."""
    [key] = await redis.keys("sluice:breaker:*")
    kept, by = orjson.loads(await redis.get(key) or b""), round(seconds * 1000)
    for moment in ("opened_at", "open_until", "probe_until"):
        if moment in kept:
            kept[moment] -= by
    kept["calls"] = [[at - by, *counts] for at, *counts in kept.get("calls", [])]
    await redis.set(key, orjson.dumps(kept))


async def half_open(redis: Redis) -> None:
    """A breaker whose pause has just ended."""
    await fail(redis, 3)
    await pass_time(redis, 5)


async def test_what_nobody_has_called_is_closed(redis: Redis) -> None:
    """And clean."""
    assert await breakers.states(redis, ["m", "n"]) == {"m": "closed", "n": "closed"}
    assert await breakers.ask(redis, NAME) == breakers.CLEAN


async def test_calls_that_go_well_together_are_told_once(redis: Redis) -> None:
    """The others are counted, and told with the next."""
    ours = Breakers(redis)
    well = [ours.heard(NAME, None, age=timedelta()) for _ in range(20)]
    await asyncio.gather(*well)
    told = (await redis.info("commandstats"))["cmdstat_eval"]["calls"]
    await ours.heard(NAME, UpstreamTimeout("Too slow."), age=timedelta())

    assert told == 1
    [key] = await redis.keys("sluice:breaker:*")
    [[_, calls, failed]] = orjson.loads(await redis.get(key) or b"")["calls"]
    assert (calls, failed) == (21, 1)


async def test_three_failures_in_a_row_open_it(redis: Redis) -> None:
    """For five seconds."""
    await fail(redis, 2)
    assert await state(redis) == "closed"
    await fail(redis)

    assert await state(redis) == "open"
    refused = await breakers.ask(redis, NAME)
    assert not refused.lets_through
    assert timedelta(0) < refused.good_for <= timedelta(seconds=5)


async def test_an_answer_between_them_breaks_the_row(redis: Redis) -> None:
    """Also one that is reported together with the next failure."""
    await breakers.report(redis, NAME, answered=20)
    for _ in range(6):
        await fail(redis, 2)
        await breakers.report(redis, NAME, answered=5, failed=True)
        await breakers.report(redis, NAME, answered=1)

    assert await state(redis) == "closed"
    assert await breakers.ask(redis, NAME) == breakers.CALL


@pytest.mark.parametrize("answered, failed, opens", [(3, 2, False), (3, 3, True), (2, 2, False)])
async def test_half_of_at_least_five_calls_open_it(
    redis: Redis, answered: int, failed: int, opens: bool
) -> None:
    """However they are mixed."""
    for number in range(max(answered, failed)):
        if number < answered:
            await breakers.report(redis, NAME, answered=1)
        if number < failed:
            await fail(redis)

    assert await state(redis) == ("open" if opens else "closed")


async def test_what_failed_a_minute_ago_counts_no_more(redis: Redis) -> None:
    """Only what fell into the window, whose slots leave one by one."""
    for _ in range(2):
        await breakers.report(redis, NAME, answered=1, failed=True)
    await pass_time(redis, 61)
    await breakers.report(redis, NAME, answered=1, failed=True)

    assert await state(redis) == "closed"
    await pass_time(redis, 61)
    assert await breakers.ask(redis, NAME) == breakers.CLEAN


@pytest.mark.parametrize("asked, given", [(20, 20), (3600, 60)])
async def test_an_upstream_that_asks_for_a_pause_gets_it(
    redis: Redis, asked: int, given: int
) -> None:
    """At once, and for no more than a minute."""
    await fail(redis, pause=timedelta(seconds=asked))

    good_for = (await breakers.ask(redis, NAME)).good_for.total_seconds()
    assert given - 5 < good_for <= given


async def test_one_probe_at_a_time(redis: Redis) -> None:
    """Of all who ask at once; a second one when the first is not heard of."""
    await half_open(redis)
    assert await state(redis) == "half_open"
    await asyncio.gather(*(redis.ping() for _ in range(20)))  # connections take their time

    asked = await asyncio.gather(*(let_through(redis) for _ in range(20)))
    assert sum(asked) == 1
    assert await state(redis) == "half_open"

    await pass_time(redis, 60)
    assert await let_through(redis)
    assert not await let_through(redis)


async def test_a_probe_that_is_answered_closes_it(redis: Redis) -> None:
    """With a clean slate: two failures more do not open it again."""
    await half_open(redis)
    assert await let_through(redis)
    await breakers.report(redis, NAME, answered=1)
    await fail(redis, 2)

    assert await state(redis) == "closed"


async def test_a_probe_that_fails_opens_it_for_twice_as_long(redis: Redis) -> None:
    """Up to a minute."""
    await half_open(redis)
    for pause in (10, 20, 40, 60, 60):
        assert await let_through(redis)
        await fail(redis)
        good_for = (await breakers.ask(redis, NAME)).good_for.total_seconds()
        assert pause - 5 < good_for <= pause
        await pass_time(redis, pause)


async def test_calls_from_before_it_opened_do_not_change_it(redis: Redis) -> None:
    """They say nothing about the time since; one that began since does, whoever made it."""
    await fail(redis, 3)
    await breakers.report(redis, NAME, answered=5, age=LONG_AGO)
    await pass_time(redis, 5)
    await fail(redis, age=LONG_AGO)
    assert await state(redis) == "half_open"

    await breakers.report(redis, NAME, answered=1)
    assert await state(redis) == "closed"


async def test_without_redis_it_is_closed(redis: Redis, redis_server: Valkey) -> None:
    """Nobody fails, or waits, because a breaker cannot be asked."""
    await fail(redis, 3)
    redis_server.kill()

    assert await let_through(redis)
    assert await breakers.report(redis, NAME, failed=True) is False
    assert await breakers.states(redis, [NAME]) == {}


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    calls=st.lists(st.sampled_from(["answered", "failed", "asked", "later", "much later"])),
)
async def test_any_life_of_a_breaker_is_one(redis: Redis, calls: list[str]) -> None:
    """It can always be read, and is half-open within a minute; then one call decides."""
    await redis.flushall()
    await fail(redis)
    for word in calls:
        if "later" in word:
            await pass_time(redis, 70 if word == "much later" else 7)
        elif word == "answered":
            await breakers.report(redis, NAME, answered=1)
        else:
            await fail(redis, pause=timedelta(seconds=30 * (word == "asked")))
        assert await state(redis) in ("closed", "open", "half_open")
    await pass_time(redis, 61)

    was_open = await state(redis) == "half_open"
    assert [await let_through(redis), await let_through(redis)] == [True, not was_open]
    await breakers.report(redis, NAME, answered=1)
    assert await state(redis) == "closed"


def chain(*names: str) -> list[Target]:
    """Models that fall back to each other in this order."""
    fields: dict[str, Any] = {"upstream": "u", "context_window": 9, "max_output_tokens": 9}
    return [
        Target(place, Model(name=name, free=True, **fields)) for place, name in enumerate(names)
    ]


async def commands(redis: Redis) -> int:
    """How many commands the server has had, those of scripts apart."""
    stats: Any = await redis.info("commandstats")
    return int(stats.get("cmdstat_eval", {"calls": 0})["calls"])


async def test_the_first_that_is_not_open_is_called(redis: Redis) -> None:
    """The last one in any case; a model without others is not even asked for."""
    worker = Breakers(redis)
    for name in ("a", "b"):
        for _ in range(3):
            await worker.heard(name, UpstreamOverloaded("busy"), age=timedelta())

    assert await worker.first(chain("c", "a")) == 0
    assert await worker.first(chain("a", "c")) == 1
    assert await worker.first(chain("a", "b")) == 1
    asked = await commands(redis)
    assert await worker.first(chain("a")) == 0
    assert await commands(redis) == asked


async def test_while_all_goes_well_it_costs_next_to_nothing(redis: Redis) -> None:
    """One report and perhaps one question in two seconds, for a thousand calls."""
    worker = Breakers(redis)
    began = asyncio.get_running_loop().time()
    for _ in range(1000):
        await worker.first(chain("a", "b"))
        await worker.heard("a", None, age=timedelta())

    periods = 1 + (asyncio.get_running_loop().time() - began) / 2
    assert await commands(redis) <= 2 * periods


async def test_what_one_worker_saw_the_others_know(redis: Redis) -> None:
    """It opens for all of them."""
    seeing = Breakers(redis)
    for _ in range(3):
        await seeing.heard("a", UpstreamOverloaded("busy"), age=timedelta())

    assert await breakers.states(redis, ["a"]) == {"a": "open"}
    assert await Breakers(redis).first(chain("a", "b")) == 1


async def test_answers_that_were_only_counted_are_told_with_the_next_failure(redis: Redis) -> None:
    """Four failures among twenty answers are few."""
    worker = Breakers(redis)
    for word in "." * 19 + "xx.xx":
        error = UpstreamOverloaded("busy") if word == "x" else None
        await worker.heard("a", error, age=timedelta())

    assert await breakers.states(redis, ["a"]) == {"a": "closed"}
