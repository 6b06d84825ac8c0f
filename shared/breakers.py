"""A breaker for each model of the catalogue, shared through Redis: one that fails is left alone.

Closed, calls go through. It opens when three of them fail in a row, or half of at least five within
a minute, or when the upstream names a pause; then nobody calls, for five seconds. Half-open, one
call goes through to see: it closes the breaker, or opens it for twice as long, up to a minute.
Without Redis every breaker is closed.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared import streams

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
IN_A_ROW: Final = 3
FEWEST_CALLS: Final = 5
WINDOW_MS: Final = 60_000
SLOT_MS: Final = 10_000
"""Calls are counted in slots of this length, so the window is this much shorter at times."""
FIRST_PAUSE_MS: Final = 5_000
LONGEST_PAUSE_MS: Final = 60_000
PROBE_MS: Final = 60_000
"""After which a probe that has not been heard of is presumed lost with its worker."""
FORGOTTEN_MS: Final = 600_000
"""A breaker that nobody has reported to for so long is closed."""

_READ: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = cjson.decode(redis.call('GET', KEYS[1]) or '{}')
local function keep() redis.call('SET', KEYS[1], cjson.encode(state), 'PX', FORGOTTEN) end
"""
_NUMBERS: Final = {
    "IN_A_ROW": IN_A_ROW,
    "FEWEST": FEWEST_CALLS,
    "WINDOW": WINDOW_MS,
    "SLOT": SLOT_MS,
    "FIRST": FIRST_PAUSE_MS,
    "LONGEST": LONGEST_PAUSE_MS,
    "FORGOTTEN": FORGOTTEN_MS,
    "PROBE": PROBE_MS,
}


def _script(body: str) -> str:
    return "".join(f"local {name} = {number}\n" for name, number in _NUMBERS.items()) + _READ + body


# Answers what to do (0: call, nothing has failed lately; 1: call; 2: do not), and for how long a
# no is good, in milliseconds. Whoever is let through a half-open breaker is its probe.
ASK: Final = _script("""
if not state.opened_at then
  for _, slot in ipairs(state.calls or {}) do
    if slot[1] > now - WINDOW and slot[3] > 0 then return {1, 0} end
  end
  return {0, 0}
end
local closed_to_all = math.max(state.open_until, state.probe_until or 0)
if now < closed_to_all then return {2, closed_to_all - now} end
state.probe_until = now + PROBE
keep()
return {1, 0}
""")

# Takes how many calls were answered, whether another one then failed (1 or 0), how many
# milliseconds ago the last of them began, and for how many the upstream wants to be left alone.
REPORT: Final = _script("""
local answered, failed = tonumber(ARGV[1]), tonumber(ARGV[2])
local began_at, asked = now - tonumber(ARGV[3]), math.min(tonumber(ARGV[4]), LONGEST)

-- A call from before it opened says nothing about the time since.
if state.opened_at and began_at < state.opened_at then return 1 end
if state.opened_at and failed == 1 then
  if now >= state.open_until then
    state.pause = math.min(state.pause * 2, LONGEST)
    state.opened_at, state.probe_until = now, nil
    state.open_until = now + (asked > 0 and asked or state.pause)
  else
    state.open_until = math.max(state.open_until, now + asked)
  end
  keep()
  return 1
end
if state.opened_at then state = {} end

local calls, all, bad = {}, answered + failed, failed
for _, slot in ipairs(state.calls or {}) do
  if slot[1] > now - WINDOW then
    table.insert(calls, slot)
    all, bad = all + slot[2], bad + slot[3]
  end
end
local last = calls[#calls]
if not last or last[1] <= now - SLOT then
  last = {now, 0, 0}
  table.insert(calls, last)
end
last[2], last[3] = last[2] + answered + failed, last[3] + failed

local row = 0
if failed == 1 then row = (answered > 0 and 0 or state.row or 0) + 1 end
state = {calls = calls, row = row}
if asked > 0 or row >= IN_A_ROW or failed == 1 and all >= FEWEST and bad * 2 >= all then
  state = {opened_at = now, open_until = now + (asked > 0 and asked or FIRST), pause = FIRST}
end
keep()
return bad == 0 and 0 or 1
""")


class Answer(NamedTuple):
    """What a breaker says to somebody who wants to call."""

    lets_through: bool
    clean: bool
    """Nothing has failed lately."""
    good_for: timedelta
    """How long a refusal holds."""


CALL: Final = Answer(True, False, timedelta())
CLEAN: Final = Answer(True, True, timedelta())


async def ask(redis: Redis, name: str) -> Answer:
    """Whether to call the model of that name; half-open, the first to ask is let through."""
    try:
        async with streams.promptly():
            script: Any = redis.eval(ASK, 1, _key(name))
            word, milliseconds = await script
    except (RedisError, OSError):
        return CALL
    return Answer(word != 2, word == 0, timedelta(milliseconds=milliseconds))


async def report(
    redis: Redis,
    name: str,
    *,
    answered: int = 0,
    failed: bool = False,
    age: timedelta = timedelta(),
    pause: timedelta = timedelta(),
) -> bool:
    """Count calls that were `answered`, and then perhaps one that `failed`; whether all is clean.

    `age`: since the last of them began. `pause`: for how long the upstream is to be left alone.
    """
    numbers = [answered, int(failed), _milliseconds(age), _milliseconds(pause)]
    try:
        async with streams.promptly():
            script: Any = redis.eval(REPORT, 1, _key(name), *map(str, numbers))
            return int(await script) == 0
    except (RedisError, OSError):
        return False


async def states(redis: Redis, names: Sequence[str]) -> dict[str, str]:
    """Each model's breaker: `closed`, `open` or `half_open`. One that is missing is closed."""
    if not names:
        return {}
    try:
        async with streams.promptly(), redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            for name in names:
                pipeline.get(_key(name))
            (seconds, microseconds), *kept = await pipeline.execute()
    except (RedisError, OSError):
        return {}
    now = seconds * 1000 + microseconds // 1000
    return {name: _state(each, now) for name, each in zip(names, kept, strict=True)}


def _state(kept: bytes | None, now: int) -> str:
    open_until = orjson.loads(kept).get("open_until") if kept else None
    if open_until is None:
        return CLOSED
    return OPEN if now < open_until else HALF_OPEN


def _key(name: str) -> str:
    return f"sluice:breaker:{name}"


def _milliseconds(span: timedelta) -> int:
    return round(span.total_seconds() * 1000)
