"""Limits are counted in Redis by a script, and by the same rules in one process without it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import redis as blocking
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from api import counters
from api.counters import Local, Shared
from api.meters import REQUESTS, TOKENS, Bounds, Meter, Unit, Want, meters
from shared import connections
from shared.buckets import ADJUST, MINUTE
from shared.limits import Limits
from tests.conftest import started_valkey
from tests.valkey import Valkey

NONE = Limits()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey for the module; each test has an account of its own in it."""
    with started_valkey(tmp_path_factory.mktemp("counters")) as started:
        yield started


@asynccontextmanager
async def opened(server: Valkey) -> AsyncIterator[Redis]:
    """A client such as the API's."""
    redis = connections.open_redis(server.url)
    try:
        yield redis
    finally:
        await redis.aclose()


def wanting(
    account: str, want: Want, key: Limits | None = None, own: Limits | None = None
) -> list[Meter]:
    """The meters of a key and its account."""
    wants = {Bounds("key", "k", key or NONE): want, Bounds("account", account, own or NONE): want}
    return meters(account, wants)


ONE = Want(requests=1, tokens=100)


async def test_a_refusal_takes_nothing_anywhere(server: Valkey) -> None:
    """Not from the limits that had room either, and it leaves no key behind."""
    wide = Limits(requests_per_minute=10, tokens_per_minute=1000)
    async with opened(server) as redis:
        shared = Shared(redis)
        narrow = wanting("whole", ONE, wide, Limits(tokens_per_minute=100))
        assert (await shared.take(narrow))[0]
        before = await redis.keys("*whole*")

        taken, readings = await shared.take(narrow)

        assert not taken
        assert [reading.remaining for reading in readings] == [9, 900, 0]
        assert [reading.wait > 0 for reading in readings] == [False, False, True]
        assert await redis.keys("*whole*") == before
        assert all(b"{whole}" in key for key in before)
        lives = [await redis.pttl(key) for key in before]
        assert all(0 < life <= 60_000 for life in lives)


async def test_crowds_of_two_processes_get_what_there_is_and_no_more(server: Valkey) -> None:
    """Two hundred at once through two clients, with room for ten."""
    bounds = Limits(requests_per_minute=10)
    async with opened(server) as one, opened(server) as other:
        counted = [Shared(one), Shared(other)]

        answers = await asyncio.gather(
            *(counted[number % 2].take(wanting("crowd", ONE, bounds)) for number in range(200))
        )

        assert sum(taken for taken, _ in answers) == 10


async def test_a_bucket_fills_again_evenly(server: Valkey) -> None:
    """At sixty thousand a minute one is back after a millisecond, not all at the minute's end."""
    bounds = Limits(requests_per_minute=60_000)
    async with opened(server) as redis:
        shared = Shared(redis)
        all_of_it = wanting("refill", Want(requests=60_000), bounds)
        assert (await shared.take(all_of_it))[0]
        one = wanting("refill", Want(requests=1), bounds)

        async with asyncio.timeout(10):
            while not (await shared.take(one))[0]:
                await asyncio.sleep(0)

        taken, [reading] = await shared.take(all_of_it)
        assert not taken
        assert reading.remaining < 30_000
        assert 0 < reading.wait <= MINUTE


# What happens in a life: time that passes, and what is asked, or given back of which step before.
STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 90_000_000)),
        st.sampled_from(["take", "take", "give back"]),
        st.builds(Want, st.integers(0, 8), st.integers(0, 3000)),
    ),
    max_size=25,
)
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(1, 10) | st.integers(1, 10**12),
    tokens_per_minute=st.none() | st.integers(1, 5000) | st.integers(1, 10**12),
)
# Shadows `redis` for a script: its clock is the last argument, by which alone things expire.
OWN_CLOCK = """
local real, moment = redis, table.remove(ARGV)
local redis = {call = function(command, ...)
  if command == 'TIME' then
    return {string.sub(moment, 1, -7), string.sub(moment, -6)}
  end
  local key, value = ...
  if command == 'SET' then return real.call(command, key, value) end
  return real.call(command, ...)
end}
"""


class Told:
    """The scripts, at moments that the test chooses."""

    def __init__(self, redis: "blocking.Redis") -> None:
        self._redis = redis

    def take(self, wanted: Sequence[Meter], now: int) -> tuple[bool, list[int]]:
        """As `Shared.take`."""
        arguments: list[Any] = []
        for meter in wanted:
            arguments += [meter.share(meter.wanted), meter.room]
        script = OWN_CLOCK + counters.TAKE
        keys = [meter.key for meter in wanted]
        answer: Any = self._redis.eval(script, len(keys), *keys, *arguments, now)
        return bool(answer[0]), answer[1:]

    def adjust(self, changes: dict[str, int], now: int) -> None:
        """As `Shared.adjust`."""
        script = OWN_CLOCK + ADJUST
        self._redis.eval(script, len(changes), *changes, *map(str, changes.values()), now)


@contextmanager
def emptied(server: Valkey) -> Iterator["blocking.Redis"]:
    """A Redis that knows nothing."""
    with blocking.Redis(port=server.port) as redis:
        redis.flushall()
        yield redis


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, key=LIMITS, own=LIMITS)
def test_one_process_counts_as_the_script_does(
    server: Valkey, steps: list[tuple[int, str, Want]], key: Limits, own: Limits
) -> None:
    """Whatever is taken and given back at whatever moments: the same answers to the microsecond."""
    now = 1_700_000_000_000_000
    with emptied(server) as redis:
        script, local = Told(redis), Local()
        for passed, what, want in steps:
            now += passed
            wanted = [m for m in wanting("equal", want, key, own) if m.wanted <= m.limit]
            if what == "take" and wanted:
                taken, readings = local.take(wanted, now)
                used = [reading.used for reading in readings]
                assert script.take(wanted, now) == (taken, used)
                continue
            back = {m.key: -m.share(m.wanted) for m in wanted}
            if back:
                local.adjust(back, now)
                script.adjust(back, now)


@pytest.mark.parametrize("unit", [REQUESTS, TOKENS])
@given(limit=st.integers(1, 100_000))
def test_a_limit_is_met_exactly(unit: Unit, limit: int) -> None:
    """Any number in a minute is really that number at once, and not one more."""
    local, bounds = Local(), Bounds("key", "k", Limits.model_validate({unit: limit}))
    halves = (limit // 2, limit - limit // 2, 1)
    meter = [Meter(bounds, unit, "bucket", limit, wanted) for wanted in halves]

    assert local.take([meter[0]], 0)[0]
    taken, [reading] = local.take([meter[1]], 0)
    assert (taken, reading.remaining) == (True, 0)
    assert not local.take([meter[2]], 0)[0]
    assert local.take([meter[2]], MINUTE)[0]
