"""The delta log (a Redis Stream per job) and its bell (a pub/sub channel of the same name).

An entry's id is `<attempt>-<seq>`. Redis refuses an id that is not larger than the last, so a
worker that lost its lease is fenced by the append itself, and a refused entry is never announced.
`seq` numbers the deltas of a job over all its attempts; an entry that holds several has the number
of its last one.
"""

import asyncio
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

RUNNING_TTL_MS: Final = 3 * 3600 * 1000
"""How long a log outlives its last append while its job runs."""
ENDED_TTL_MS: Final = 3600 * 1000
"""How long it stays after the end; then the archive in the database serves."""
ATTEMPT_STRIDE: Final = 1_000_000
"""How far an attempt's numbers are from the last one's when its log does not tell."""
PROMPTLY: Final = 0.4
"""Seconds an answer waits for what it can do without; some ask twice, and all leave within one."""

STARTED: Final = b"s"
RETRYING: Final = b"r"
DELTAS: Final = b"d"
END: Final = b"e"

# Appends, sets the expiry and rings the bell. Answers 1, 0 when a later attempt has written
# (fenced), or 2 when this very entry is there already: its last answer was lost. What Redis refuses
# for its own reasons (no memory, no master) is an error.
APPEND: Final = """
local added = redis.pcall('XADD', KEYS[1], ARGV[1], 'd', ARGV[2])
if type(added) == 'table' and added.err then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if not last then return redis.error_reply(added.err) end
  local attempt, seq = string.match(last[1], '^(%d+)-(%d+)$')
  local ours, number = string.match(ARGV[1], '^(%d+)-(%d+)$')
  if tonumber(attempt) > tonumber(ours) then return 0 end
  if attempt == ours and tonumber(seq) >= tonumber(number) then return 2 end
  return redis.error_reply(added.err)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
return 1
"""

# Appends a marker at the number after the last, which only Redis knows, or at the given one when
# the log is empty. Answers its seq, or -1 when a later attempt has written or the log has ended.
MARK: Final = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local seq = tonumber(ARGV[3])
if last then
  local attempt, number = string.match(last[1], '^(%d+)-(%d+)$')
  local ended = string.sub(last[2][2], 1, 1) == 'e'
  if tonumber(attempt) > tonumber(ARGV[1]) or ended then return -1 end
  seq = tonumber(number) + 1
end
local id = ARGV[1] .. '-' .. seq
redis.call('XADD', KEYS[1], id, 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PUBLISH', KEYS[1], id .. ' ' .. ARGV[2])
return seq
"""


class Entry(NamedTuple):
    """One entry of a job's log."""

    attempt: int
    seq: int
    """The number of its last delta; a marker's own."""
    kind: bytes
    body: bytes

    @property
    def deltas(self) -> list[bytes]:
        """Its deltas, JSON objects of a chunk's `choices` and other fields."""
        return self.body.split(b"\n")[1:] if self.kind == DELTAS else []

    @property
    def first_seq(self) -> int:
        """The number of its first delta."""
        return self.seq - self.body.count(b"\n") + 1 if self.kind == DELTAS else self.seq

    @property
    def progress(self) -> tuple[int, int]:
        """Deltas and characters of the attempt up to here."""
        if self.kind != DELTAS:
            return 0, 0
        deltas, characters = self.body.split(b"\n", 1)[0].split(b" ")
        return int(deltas), int(characters)

    @property
    def fields(self) -> dict[str, Any]:
        """A marker's JSON."""
        found: dict[str, Any] = orjson.loads(self.body)
        return found


def deltas_payload(lines: list[bytes], *, deltas: int, characters: int) -> bytes:
    """The payload of an entry with these deltas; the counts are the attempt's so far."""
    return b"\n".join([b"d%d %d" % (deltas, characters), *lines])


def marker_payload(kind: bytes, fields: Mapping[str, Any]) -> bytes:
    """The payload of a marker."""
    return kind + orjson.dumps(fields)


def beginning_payload(kind: bytes, attempt: int) -> bytes:
    """The payload of an attempt's first entry: `STARTED`, or `RETRYING` and what that voids."""
    void = {} if kind == STARTED else {"discard_from_seq": 1}
    return marker_payload(kind, {"attempt": attempt} | void)


def end_payload(
    status: str, *, error: Mapping[str, Any] | None = None, usage: Mapping[str, Any] | None = None
) -> bytes:
    """The last entry's payload: how the job ended."""
    return marker_payload(END, {"status": status, "error": error, "usage": usage})


def answer_payload(
    response: bytes,
    *,
    usage: Mapping[str, Any] | None,
    cost: int | None,
    served_model: str | None,
    available: int | None,
) -> bytes:
    """An end that brings the answer along, for a request that is held open: the row's `response`,
    and the nano-credits that the account can spend."""
    answer = {
        "response": response.decode(),
        "cost": cost,
        "served_model": served_model,
        "available": available,
    }
    ended = {"status": "completed", "error": None, "usage": usage, "answer": answer}
    return marker_payload(END, ended)


def pack(log: bytes) -> bytes:
    """A finished log's deltas, JSON lines, as the archive keeps them."""
    # The usual window is 260 KiB of memory, which take longer to come by than most logs to pack.
    packer = zlib.compressobj(3, zlib.DEFLATED, 14, 6)
    return packer.compress(log) + packer.flush()


def unpack(archive: bytes) -> list[bytes]:
    """The deltas of an archived log."""
    log = zlib.decompress(archive)
    return log.split(b"\n") if log else []


def log_name(job_id: str) -> str:
    """The key of a job's log, and its channel."""
    return f"sluice:{{{job_id}}}:log"


def control_channel(worker_id: str) -> str:
    """Where a worker listens for jobs it should stop."""
    return f"sluice:{worker_id}:control"


def message(where: bytes, payload: bytes) -> bytes:
    """What the bell says of an entry with this id."""
    return b"%b %b" % (where, payload)


def parse_message(data: bytes) -> Entry:
    """An entry as the bell announces it: `<attempt>-<seq> <payload>`."""
    where, _, payload = data.partition(b" ")
    return _entry(where, payload)


def _entry(where: bytes, payload: bytes) -> Entry:
    attempt, _, seq = where.partition(b"-")
    return Entry(int(attempt), int(seq), payload[:1], payload[1:])


def newest(entries: list[Entry]) -> list[Entry]:
    """The entries of the last attempt among these: what an earlier one said is void."""
    for number in range(len(entries) - 1, -1, -1):
        if entries[number].kind in (STARTED, RETRYING):
            return entries[number:]
    return entries


async def read(redis: Redis, job_id: str, *, after: str = "-") -> list[Entry]:
    """The log's entries, from the beginning or after an id such as `1-17`."""
    start = after if after == "-" else f"({after}"
    rows: Any = await redis.xrange(log_name(job_id), min=start)
    return [_entry(where, fields[b"d"]) for where, fields in rows]


async def last(redis: Redis, job_id: str) -> Entry | None:
    """The log's last entry; None when there is no log."""
    rows: Any = await redis.xrevrange(log_name(job_id), count=1)
    return _entry(rows[0][0], rows[0][1][b"d"]) if rows else None


async def mark(
    redis: Redis, job_id: str, attempt: int, payload: bytes, *, otherwise: int, ttl_ms: int
) -> int:
    """Append a marker, with seq `otherwise` when the log is empty; its seq, or -1 when refused."""
    script: Any = redis.eval(
        MARK, 1, log_name(job_id), str(attempt), payload, str(otherwise), str(ttl_ms)
    )
    return int(await script)


async def close(
    redis: Redis, job_id: str, attempt: int, status: str, error: Mapping[str, Any] | None
) -> int:
    """End the log of a job that no worker holds; the end's seq, or -1 when it has one already."""
    payload = end_payload(status, error=error)
    return await mark(redis, job_id, attempt, payload, otherwise=1, ttl_ms=ENDED_TTL_MS)


async def ring_end(
    redis: Redis, job_id: str, attempt: int, status: str, error: Mapping[str, Any] | None
) -> None:
    """Tell of the end of a job that has no log; whoever hears it reads the archive."""
    where = b"%d-%d" % (attempt, attempt * ATTEMPT_STRIDE + 1)
    payload = end_payload(status, error=error)
    await redis.publish(log_name(job_id), message(where, payload))


async def listened_to(redis: Redis, job_ids: Collection[str]) -> set[str] | None:
    """Those of these jobs that somebody reads just now; None while Redis cannot tell."""
    try:
        async with promptly():
            counts: Any = await redis.pubsub_numsub(*map(log_name, job_ids))
    except (RedisError, OSError):
        return None
    return {job_id for job_id, (_, count) in zip(job_ids, counts, strict=True) if count}


def promptly() -> asyncio.Timeout:
    """Bound a word with Redis that may be left out; raises `TimeoutError`, which is an `OSError`.

    The client closes the connection of a command that was broken off: nobody gets its answer.
    """
    return asyncio.timeout(PROMPTLY)
