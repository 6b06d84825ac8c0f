"""Appends what models say to the delta logs: one pipeline per round trip for all jobs.

A delta that is alone leaves at once; while a flush is under way, and for a moment after it when
there are many jobs, the next ones gather, and those of one job merge into one entry. When Redis is
away they gather up to a bound; then `room` makes the upstream reads wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from shared import background, streams
from shared.connections import SOCKET_TIMEOUT
from workers.pace import Pace

log = structlog.get_logger()

CLOSE_WITHIN = 10.0
"""Seconds to get the end into the log; after that readers learn it from the row."""
UNHEARD = 100
"""Answers to rings after which they are read, if no others are waited for."""
UNHEARD_FOR = 1.0
"""Seconds since the last ring, after which they are read before the next."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between tries while Redis is away."""


class JobLog:
    """The log of one attempt, as its worker writes it."""

    def __init__(
        self, publisher: "Publisher", job_id: str, attempt: int, *, seq: int, every: float
    ) -> None:
        self.fenced = asyncio.Event()
        """A later attempt has written: this one must stop."""
        self.on_fenced: Callable[[], None] = lambda: None
        """Called when Redis says so."""
        self.first_seq = seq + 1
        self.lines: list[bytes] = []
        """Every delta of the attempt, for the archive."""
        self._publisher = publisher
        self._key = streams.log_name(job_id)
        self._attempt = attempt
        self._every = every
        self._pending: list[bytes] = []
        self._unsent: list[tuple[bytes, bytes]] = []
        self._known = True
        """Redis may have heard of it."""
        self._characters = 0
        self._not_before = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def next_seq(self) -> int:
        """The number the next delta, or the end, will have."""
        return self.first_seq + len(self.lines)

    def begin(self) -> None:
        """Say that the first attempt has started; when it is read only now and then, with the first
        of what it says, or after a while without."""
        self._known = False
        payload = streams.beginning_payload(streams.STARTED, self._attempt)
        self._unsent.append((self._id(self.first_seq - 1), payload))
        self._publisher.hold(len(payload))
        self._idle.clear()
        if self._every:
            self._not_before = asyncio.get_running_loop().time() + self._every
        self.wake()

    def append(self, lines: list[bytes], characters: int) -> None:
        """Say these deltas; `characters` is the attempt's total with them."""
        self.lines += lines
        self._pending += lines
        self._characters = characters
        self._idle.clear()
        self._publisher.hold(sum(map(len, lines)))
        self.wake()

    async def close(self, payload: bytes, answer: bytes) -> None:
        """Append what is left and the end, and return when it is in the log, or given up.

        Where there is no log, whoever waits is told the `answer`: an end, perhaps with more to it.
        """
        if self.fenced.is_set():
            return
        if self._every and not self._known:  # it was over before anybody could have read it
            self._forget()
            where = self._id(self.next_seq)
            self._publisher.ring(self._key, streams.message(where, answer))
            return
        self._not_before = 0.0
        self._collect()
        self._unsent.append((self._id(self.next_seq), payload))
        self._publisher.hold(len(payload))
        self._idle.clear()
        self.wake()
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await self._idle.wait()
        except TimeoutError:
            self.drop()

    def drop(self) -> None:
        """Forget what was not sent, and send no more."""
        self.fenced.set()
        self._forget()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._publisher.hold(-sum(map(len, self._pending)))
        self._publisher.hold(-sum(len(payload) for _, payload in self._unsent))
        self._pending.clear()
        self._unsent.clear()
        self._idle.set()

    def wake(self) -> None:
        """Have the publisher take what is pending, now or when the pause between two is over."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._not_before > 0.0:
                return
            self._timer.cancel()
        if self._not_before > loop.time():
            self._timer = loop.call_at(self._not_before, self._publisher.ready, self)
        else:
            self._publisher.ready(self)

    def take(self, now: float) -> list[tuple[bytes, bytes]]:
        """The entries to send in this flush; they stay until `sent`."""
        self._timer, self._known = None, True
        self._not_before = now + self._every if self._every else 0.0
        self._collect()
        return self._unsent

    def sent(self, answers: Sequence[object]) -> None:
        """What Redis said to each of them."""
        done, self._unsent = self._unsent[: len(answers)], self._unsent[len(answers) :]
        self._publisher.hold(-sum(len(payload) for _, payload in done))
        if 0 in answers:
            self.drop()
            self.on_fenced()
        elif self._pending or self._unsent:  # it came while these were on their way
            self.wake()
        else:
            self._idle.set()

    @property
    def key(self) -> str:
        """The log's key."""
        return self._key

    def _collect(self) -> None:
        if self._pending:
            payload = streams.deltas_payload(
                self._pending, deltas=len(self.lines), characters=self._characters
            )
            self._publisher.hold(len(payload) - sum(map(len, self._pending)))
            self._unsent.append((self._id(self.next_seq - 1), payload))
            self._pending = []

    def _id(self, seq: int) -> bytes:
        return b"%d-%d" % (self._attempt, seq)


class Unread:
    """The log of an attempt that nobody follows word by word: Redis hears of nothing but its end.

    Its numbers are those that a log lost with Redis would have.
    """

    def __init__(self, publisher: "Publisher", job_id: str, attempt: int) -> None:
        self.first_seq = (attempt - 1) * streams.ATTEMPT_STRIDE + 1
        self.lines: list[bytes] = []
        """Every delta of the attempt, for the archive."""
        self._publisher = publisher
        self._job_id = job_id
        self._attempt = attempt

    def append(self, lines: list[bytes], _: int) -> None:
        """Keep these deltas."""
        self.lines += lines

    async def close(self, payload: bytes, _: bytes) -> None:
        """Tell whoever waits of the end, sooner or later; whoever misses it looks at the row."""
        where = b"%d-%d" % (self._attempt, self.first_seq + len(self.lines))
        self._publisher.ring(streams.log_name(self._job_id), streams.message(where, payload))

    def drop(self) -> None:
        """Nothing of it is on its way."""


class Publisher:
    """One task, one connection, all jobs of the process."""

    def __init__(self, redis: Redis, pace: Pace, *, bound: int) -> None:
        self.held = 0
        """Bytes waiting for Redis."""
        self._redis = redis
        self._pace = pace
        self._bound = bound
        self._ready: dict[JobLog, None] = {}
        self._rings: list[tuple[str, bytes]] = []
        """Channels, and what is said there to whoever listens."""
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None
        self._rang_at = 0.0
        self._unheard = 0
        """Rings that Redis has answered, or will; to wait for each word of it would take as long
        as to ring."""
        self._sha = b""
        self._away = False
        self._pause = FIRST_PAUSE

    def start(self) -> None:
        """Begin to flush; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def stop(self) -> None:
        """Stop flushing; what is still waiting is lost with the process."""
        await background.stop(self._task)

    def begin(self, job_id: str, *, every: float) -> JobLog:
        """Begin the log of a job's first attempt, without waiting for Redis.

        `every`: the least number of seconds between two appends.
        """
        job_log = JobLog(self, job_id, 1, seq=0, every=every)
        job_log.begin()
        return job_log

    async def open(self, job_id: str, attempt: int, *, every: float) -> JobLog | None:
        """Begin a later attempt's log: its marker fences every earlier attempt.

        None when this attempt is itself fenced. `every`: the least number of seconds between two
        appends. Raises `RedisError`.
        """
        seq = await streams.mark(
            self._redis,
            job_id,
            attempt,
            streams.beginning_payload(streams.RETRYING, attempt),
            # A log that was lost with Redis must not make the numbers shrink.
            otherwise=(attempt - 1) * streams.ATTEMPT_STRIDE,
            ttl_ms=streams.RUNNING_TTL_MS,
        )
        return JobLog(self, job_id, attempt, seq=seq, every=every) if seq >= 0 else None

    def unread(self, job_id: str, attempt: int) -> Unread:
        """An attempt's log that stays in this process."""
        return Unread(self, job_id, attempt)

    def ring(self, channel: str, message: bytes) -> None:
        """Say this to whoever listens there; it is lost when Redis is away."""
        self._rings.append((channel, message))
        self._work.set()

    def hold(self, size: int) -> None:
        """So many bytes more, or fewer, wait for Redis."""
        self.held += size
        if self.held > self._bound:
            self._room.clear()
        else:
            self._room.set()

    async def room(self) -> None:
        """Wait while more is held back than the bound allows."""
        await self._room.wait()

    def ready(self, job_log: JobLog) -> None:
        """This log has something to send."""
        self._ready[job_log] = None
        self._work.set()

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            try:
                await self._live()
            except Exception as error:  # whatever it is, every job of the process waits for us
                if not self._away:
                    log.warning("redis_away", waiting_bytes=self.held, error=repr(error))
                self._away = True
                self._rings.clear()
                await asyncio.sleep(self._pause)
                self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def _live(self) -> None:
        """Flush over one connection until it breaks."""
        pool: Any = self._redis.connection_pool
        connection: Any = pool.make_connection()
        try:
            await connection.connect()
            await connection.send_command("SCRIPT", "LOAD", streams.APPEND)
            self._sha = await connection.read_response()
            self._unheard = 0
            connection.socket_timeout = None  # one timer for a flush, not one for each entry
            while True:
                await self._work.wait()
                async with asyncio.timeout(SOCKET_TIMEOUT):
                    await self._flush(connection)
                self._away, self._pause = False, FIRST_PAUSE
                if gap := self._pace.gap:
                    await asyncio.sleep(gap)
        finally:
            await connection.disconnect()

    async def _flush(self, connection: AbstractConnection) -> None:
        """Send everything that is ready in one write, then read all the answers."""
        now = asyncio.get_running_loop().time()
        if self._unheard and now - self._rang_at > UNHEARD_FOR:
            await self._hear(connection)  # it may be broken by now
        batch = {job_log: list(job_log.take(now)) for job_log in self._ready}
        ttl = str(streams.RUNNING_TTL_MS)
        ended = str(streams.ENDED_TTL_MS)
        rings, self._rings = self._rings, []
        commands: list[tuple[str | bytes, ...]] = [("PUBLISH", *ring) for ring in rings]
        commands += [
            (
                *("EVALSHA", self._sha, "1", job_log.key, where, payload),
                ended if payload.startswith(streams.END) else ttl,
            )
            for job_log, entries in batch.items()
            for where, payload in entries
        ]
        if commands:
            await connection.send_packed_command(
                connection.pack_commands(commands), check_health=False
            )
        if rings:
            self._unheard, self._rang_at = self._unheard + len(rings), now
        if batch or self._unheard > UNHEARD:
            await self._hear(connection)
        for job_log, entries in batch.items():
            # Any error reply (a script unknown to a new server, a replica) ends the connection:
            # what was not answered is sent again on the next.
            answers = [await connection.read_response(disable_decoding=True) for _ in entries]
            del self._ready[job_log]
            job_log.sent(answers)
        if not self._ready and not self._rings:
            self._work.clear()

    async def _hear(self, connection: AbstractConnection) -> None:
        """Read what Redis said to rings."""
        for _ in range(self._unheard):
            await connection.read_response(disable_decoding=True)
        self._unheard = 0
