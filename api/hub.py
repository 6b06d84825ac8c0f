"""One pub/sub connection for all the readers of a process.

Pub/sub drops messages in silence, so nothing here is trusted to be whole: whenever a subscription
is confirmed anew, or a reader's buffer is full, the reader is told that it has `missed` something
and reads the log instead. Nobody waits for the slowest.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from shared import background, streams

log = structlog.get_logger()

BUFFER = 256
"""Messages kept for a reader before it is sent to the log."""
ACKNOWLEDGED_WITHIN = 0.5
"""Seconds a reader waits for its subscription; without Redis it has the row to look at."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between tries while Redis is away."""
PING_EVERY = 1.0
SILENT_FOR = 4.0
"""Seconds without a word, not even to our pings, after which a connection is dead."""


class Bell:
    """What one reader hears of one job."""

    def __init__(self) -> None:
        self.missed = False
        """Something may have been lost: read the log."""
        self.early = True
        """Nothing can have been said yet."""
        self._messages: deque[bytes] = deque()
        self._rung = asyncio.Event()

    def ring(self, message: bytes) -> None:
        """A message came."""
        if len(self._messages) >= BUFFER:
            self.miss()
        elif not self.missed:
            self._messages.append(message)
            self._rung.set()

    def confirmed(self) -> None:
        """Redis tells us of everything from now on."""
        if not self.early:
            self.miss()
        self.early = False

    def miss(self) -> None:
        """Forget what waits; the log has it all."""
        self._messages.clear()
        self.missed = True
        self._rung.set()

    def take_over(self, other: "Bell") -> None:
        """Go on from what another has heard of the same job; what both heard is told twice."""
        self._messages.extendleft(reversed(other._messages))
        if other.missed or len(self._messages) > BUFFER:
            self.miss()
        elif self._messages:
            self._rung.set()

    def wake(self, _: object = None) -> None:
        """End the wait, though nothing came; something that ends may call it."""
        self._rung.set()

    async def wait(self, seconds: float) -> list[bytes]:
        """The messages that came, at once or within so many seconds; none, and `missed`, if some
        may be lost."""
        if not self._rung.is_set():
            # A tenth of what `asyncio.timeout` takes, which comes with every word.
            timer = asyncio.get_running_loop().call_later(seconds, self._rung.set)
            try:
                await self._rung.wait()
            finally:
                timer.cancel()
        self._rung.clear()
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def caught_up(self) -> None:
        """The log is about to be read."""
        self.missed = False
        self._rung.clear()
        self._messages.clear()


class Hub:
    """Keeps the connection, the subscriptions and the readers."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._bells: dict[bytes, set[Bell]] = {}
        self._acknowledged: dict[bytes, asyncio.Event] = {}
        self._wanted: dict[bytes, bool] = {}
        """Channels to subscribe to (True) or to leave, in the next write."""
        self._wake = asyncio.Event()
        self._pause = FIRST_PAUSE
        self._heard_at = 0.0
        """When Redis last said anything, by `time.monotonic`."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and go on connecting; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="hub")

    async def stop(self) -> None:
        """Hang up."""
        await background.stop(self._task)

    @property
    def readers(self) -> int:
        """How many are listening."""
        return sum(map(len, self._bells.values()))

    def wake(self) -> None:
        """Have every reader look up."""
        for bells in self._bells.values():
            for bell in bells:
                bell.wake()

    @asynccontextmanager
    async def listen(self, job_id: str) -> AsyncIterator[Bell]:
        """Hear of everything appended to a job's log from now on.

        Returns once Redis has confirmed, or after a while without: then `missed` will be set when
        it does.
        """
        with self.listening(job_id) as bell:
            bell.early = False
            acknowledged = self._acknowledged[streams.log_name(job_id).encode()]
            if not acknowledged.is_set():
                try:
                    async with asyncio.timeout(ACKNOWLEDGED_WITHIN):
                        await acknowledged.wait()
                except TimeoutError:
                    log.warning("subscription_waits", job_id=job_id)
            yield bell

    @contextmanager
    def listening(self, job_id: str) -> Iterator[Bell]:
        """The same without waiting for Redis: `missed` will be set when it has confirmed, unless
        the bell is `early` then, as that of a job that is not committed yet."""
        channel, bell = streams.log_name(job_id).encode(), Bell()
        bells = self._bells.setdefault(channel, set())
        bells.add(bell)
        if channel not in self._acknowledged:
            self._acknowledged[channel] = asyncio.Event()
            self._want(channel, True)
        try:
            yield bell
        finally:
            bells.discard(bell)
            if not bells:
                del self._bells[channel]
                del self._acknowledged[channel]
                self._want(channel, False)

    def _want(self, channel: bytes, subscribed: bool) -> None:
        self._wanted[channel] = subscribed
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._live()
            except Exception as error:  # whatever it is, the readers need a hub
                if self._pause == FIRST_PAUSE:
                    log.warning("bell_lost", error=repr(error))
            for acknowledged in self._acknowledged.values():
                acknowledged.clear()
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def _live(self) -> None:
        """One connection, until it breaks."""
        pool: Any = self.redis.connection_pool
        connection: Any = pool.make_connection()
        await connection.connect()
        self._heard_at = time.monotonic()
        try:
            self._pause = FIRST_PAUSE
            self._wanted = dict.fromkeys(self._bells, True)
            self._wake.set()
            connection.socket_timeout = None  # a timer for each read and write would cost more
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(connection))
                tasks.create_task(self._read(connection))
        finally:
            await connection.disconnect()

    async def _write(self, connection: AbstractConnection) -> None:
        """Subscribe to what is wanted as soon as it is; ping when there is nothing to do.

        Our own pings are answered every second: silence means that the connection is dead.
        """
        while time.monotonic() - self._heard_at < SILENT_FOR:
            try:
                async with asyncio.timeout(PING_EVERY):
                    await self._wake.wait()
            except TimeoutError:
                await connection.send_command("PING", check_health=False)
                continue
            self._wake.clear()
            wanted, self._wanted = self._wanted, {}
            commands = []
            for command, subscribed in ((b"SUBSCRIBE", True), (b"UNSUBSCRIBE", False)):
                channels = [name for name, want in wanted.items() if want is subscribed]
                if channels:
                    commands.append((command, *channels))
            packed = connection.pack_commands(commands)
            async with asyncio.timeout(SILENT_FOR):
                await connection.send_packed_command(packed, check_health=False)
        raise ConnectionError("Redis says nothing")

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
            self._heard_at = time.monotonic()
            kind = reply[0] if isinstance(reply, list) else None
            if kind == b"message":
                for bell in self._bells.get(reply[1], ()):
                    bell.ring(reply[2])
            elif kind == b"subscribe":
                acknowledged = self._acknowledged.get(reply[1])
                if acknowledged is not None:
                    acknowledged.set()
                for bell in self._bells.get(reply[1], ()):
                    bell.confirmed()
