"""Where requests and tokens a minute are counted: in Redis, or here while Redis is away.

A bucket is the moment at which it will be full again, in microseconds; one that is full is not
kept.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from api.meters import Meter, Reading
from shared.buckets import ADJUST

# Takes what is wanted of all, or nothing. ARGV: for each key what is wanted and the room there is.
# Answers 1 or 0, and how much of each is used.
TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answer = {1}
for i, key in ipairs(KEYS) do
  local used = math.max(0, (tonumber(redis.call('GET', key)) or 0) - now)
  local wanted = tonumber(ARGV[2 * i - 1])
  if wanted > 0 and used + wanted > tonumber(ARGV[2 * i]) then answer[1] = 0 end
  answer[i + 1] = used
end
if answer[1] == 0 then return answer end
for i, key in ipairs(KEYS) do
  local wanted = tonumber(ARGV[2 * i - 1])
  if wanted > 0 then
    local used = answer[i + 1] + wanted
    local full = string.format('%.0f', now + used)
    redis.call('SET', key, full, 'PX', math.ceil(used / 1000))
    answer[i + 1] = used
  end
end
return answer
"""


class Shared:
    """Buckets in Redis. Each method is one round trip, and raises what redis-py raises."""

    def __init__(self, redis: Redis) -> None:
        self._take = redis.register_script(TAKE)
        self._adjust = redis.register_script(ADJUST)

    async def take(self, wanted: Sequence[Meter]) -> tuple[bool, list[Reading]]:
        """Take all or nothing, and how far each meter is then."""
        arguments: list[Any] = []
        for meter in wanted:
            arguments += [meter.share(meter.wanted), meter.room]
        taken, *used = await self._take([meter.key for meter in wanted], arguments)
        return bool(taken), [Reading(*each) for each in zip(wanted, used, strict=True)]

    async def adjust(self, changes: Mapping[str, int]) -> None:
        """Move these buckets by so many microseconds each, whatever room there is."""
        await self._adjust([*changes], [*changes.values()])


class Local:
    """The same rules for one process."""

    def __init__(self) -> None:
        self._full_at: Counter[str] = Counter()

    def take(self, wanted: Sequence[Meter], now: int | None = None) -> tuple[bool, list[Reading]]:
        """Take all or nothing, and how far each meter is then; `now` is in microseconds."""
        now = microseconds() if now is None else now
        before = [Reading(meter, self._used(meter, now)) for meter in wanted]
        if any(reading.wait for reading in before):
            return False, before
        for meter, reading in zip(wanted, before, strict=True):
            self._full_at[meter.key] = now + reading.used + meter.share(meter.wanted)
        return True, [Reading(meter, self._used(meter, now)) for meter in wanted]

    def adjust(self, changes: Mapping[str, int], now: int | None = None) -> None:
        """Move these buckets by so many microseconds each, whatever room there is."""
        now = microseconds() if now is None else now
        for key, change in changes.items():
            self._full_at[key] = max(now, self._full_at[key]) + change

    def tidy(self, now: int | None = None) -> None:
        """Forget the buckets that are full."""
        now = microseconds() if now is None else now
        self._full_at = Counter({key: at for key, at in self._full_at.items() if at > now})

    def _used(self, meter: Meter, now: int) -> int:
        return max(0, self._full_at[meter.key] - now)


def microseconds() -> int:
    """A clock of this process alone."""
    return time.monotonic_ns() // 1000
