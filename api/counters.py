"""Where limits are counted: in Redis for all processes, or in this one while Redis is away.

A bucket is the moment at which it will be full again, in microseconds; one that is full is not
kept. A count is a set of leases, which lapse.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from api.meters import CONCURRENCY, Meter, Reading
from shared.buckets import ADJUST

LEASE: Final = 30_000_000
"""Microseconds a place is kept for a request whose process says nothing more."""

# Takes what is wanted of all, or nothing. KEYS: buckets, then sets of leases. ARGV: how many are
# buckets, the lease, how long it lasts; then for each key what is wanted and the room there is.
# Answers 1 or 0, and how much of each is used.
TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local buckets, lease, lasts = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local answer = {1}
for i, key in ipairs(KEYS) do
  local used
  if i <= buckets then
    used = math.max(0, (tonumber(redis.call('GET', key)) or 0) - now)
  else
    used = redis.call('ZCOUNT', key, string.format('(%.0f', now), '+inf')
  end
  local wanted = tonumber(ARGV[2 * i + 2])
  if wanted > 0 and used + wanted > tonumber(ARGV[2 * i + 3]) then answer[1] = 0 end
  answer[i + 1] = used
end
if answer[1] == 0 then return answer end
for i, key in ipairs(KEYS) do
  local wanted = tonumber(ARGV[2 * i + 2])
  if wanted > 0 then
    local used = answer[i + 1] + wanted
    if i <= buckets then
      local full = string.format('%.0f', now + used)
      redis.call('SET', key, full, 'PX', math.ceil(used / 1000))
    else
      redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
      redis.call('ZADD', key, string.format('%.0f', now + lasts), lease)
      redis.call('PEXPIRE', key, math.ceil(lasts / 1000))
    end
    answer[i + 1] = used
  end
end
return answer
"""

# Keeps leases of one set, also those that lapsed or were forgotten. ARGV: how long, the leases.
RENEW: Final = """
local time = redis.call('TIME')
local ends = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ends, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] / 1000))
"""


class Shared:
    """Counters in Redis. Each method is one round trip, and raises what redis-py raises."""

    def __init__(self, redis: Redis, lease: int = LEASE) -> None:
        self._redis = redis
        self._lease = lease
        self._take = redis.register_script(TAKE)
        self._adjust = redis.register_script(ADJUST)

    async def take(self, wanted: Sequence[Meter], lease: str) -> tuple[bool, list[Reading]]:
        """Take all or nothing, and how far each meter is then."""
        buckets = sum(meter.unit != CONCURRENCY for meter in wanted)
        arguments: list[Any] = [buckets, lease, self._lease]
        for meter in wanted:
            arguments += [meter.share(meter.wanted), meter.room]
        taken, *used = await self._take([meter.key for meter in wanted], arguments)
        return bool(taken), [Reading(*each) for each in zip(wanted, used, strict=True)]

    async def adjust(self, changes: Mapping[str, int], leases: Sequence[str], lease: str) -> None:
        """Move these buckets, and give up the lease in these sets."""
        async with self._redis.pipeline(transaction=False) as pipe:
            if changes:
                await self._adjust([*changes], [*changes.values()], client=pipe)
            for key in leases:
                pipe.zrem(key, lease)
            await pipe.execute()

    async def renew(self, leases: Mapping[str, Collection[str]]) -> None:
        """Keep these leases, by set, for another term; those that Redis has forgotten as well."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for key, held in leases.items():
                pipe.eval(RENEW, 1, key, str(self._lease), *held)
            await pipe.execute()


class Local:
    """The same rules for one process; its leases do not lapse, for they end with it."""

    def __init__(self) -> None:
        self.leases: dict[str, set[str]] = {}
        """Also those that are counted in Redis: all that this process has to keep."""
        self._full_at: Counter[str] = Counter()

    def take(
        self, wanted: Sequence[Meter], lease: str, now: int | None = None
    ) -> tuple[bool, list[Reading]]:
        """Take all or nothing, and how far each meter is then; `now` is in microseconds."""
        now = microseconds() if now is None else now
        before = [Reading(meter, self._used(meter, now)) for meter in wanted]
        if any(reading.wait for reading in before):
            return False, before
        for meter, reading in zip(wanted, before, strict=True):
            if meter.unit == CONCURRENCY:
                self.keep([meter.key] if meter.wanted else (), lease)
            else:
                self._full_at[meter.key] = now + reading.used + meter.share(meter.wanted)
        return True, [Reading(meter, self._used(meter, now)) for meter in wanted]

    def adjust(self, changes: Mapping[str, int], now: int | None = None) -> None:
        """Move these buckets by so many microseconds each, whatever room there is."""
        now = microseconds() if now is None else now
        for key, change in changes.items():
            self._full_at[key] = max(now, self._full_at[key]) + change

    def keep(self, leases: Sequence[str], lease: str) -> None:
        """Count the lease in these sets."""
        for key in leases:
            self.leases.setdefault(key, set()).add(lease)

    def drop(self, leases: Sequence[str], lease: str) -> None:
        """Give up the lease in these sets."""
        for key in leases:
            held = self.leases.get(key, set())
            held.discard(lease)
            if not held:
                self.leases.pop(key, None)

    def tidy(self, now: int | None = None) -> None:
        """Forget the buckets that are full."""
        now = microseconds() if now is None else now
        self._full_at = Counter({key: at for key, at in self._full_at.items() if at > now})

    def _used(self, meter: Meter, now: int) -> int:
        if meter.unit == CONCURRENCY:
            return len(self.leases.get(meter.key, ()))
        return max(0, self._full_at[meter.key] - now)


def microseconds() -> int:
    """A clock of this process alone."""
    return time.monotonic_ns() // 1000
