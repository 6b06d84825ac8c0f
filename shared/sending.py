"""Hints on their way to the broker: one task, one connection, and nobody waits for it."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from shared import background, messages
from shared.connections import SOCKET_TIMEOUT
from shared.lifecycle import Lane
from shared.queue import RUN_JOB, queue_key

ROUND: Final = 1_000
"""Hints that share one round trip."""
SHARED: Final = 16
"""Interactive jobs that share a hint while the workers keep up."""
SHORT: Final = 4
"""Hints in a queue that is emptied as fast as it fills."""
NOW_OR_ELSEWHERE: Final = {"wait": False}
"""What finds no slot at once is hinted again, perhaps to another worker."""

log = logging.getLogger(__name__)


class Hint(NamedTuple):
    """A message: which jobs to look at."""

    lane: Lane
    job_ids: Sequence[str]
    options: Mapping[str, bool] = {}
    """`wait`, if not all of them may be looked at one after another."""

    @property
    def command(self) -> tuple[str, str, bytes]:
        """What Redis is told."""
        lane = self.lane.value
        return "LPUSH", queue_key(lane), messages.hint(RUN_JOB, self.job_ids, self.options, lane)


class Hints:
    """Publishes hints; `on_lost` is called with the ids of jobs whose hints could not be sent."""

    def __init__(
        self,
        redis: Redis,
        on_lost: Callable[[list[str]], Awaitable[object]],
        *,
        capacity: int = 10_000,
        within: float = SOCKET_TIMEOUT,
    ) -> None:
        self._redis = redis
        self._on_lost = on_lost
        self._capacity = capacity
        self._within = within
        """Seconds that Redis has to answer."""
        self._waiting: deque[tuple[Lane, Sequence[str], int]] = deque()
        self._wake = asyncio.Event()
        self._connection: Any = None
        self._keep_up = False
        """The workers empty the interactive queue as fast as it fills."""
        self._away = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="hints")

    def send(self, lane: Lane, job_ids: Sequence[str], *, together: int = 1) -> None:
        """Hint these jobs soon, so many `together` in a message; returns at once and never raises.
        Interactive jobs share messages while that delays none of them.

        When `capacity` calls wait already the hints are dropped: the sweep finds those jobs by
        the age of their hint.
        """
        if len(self._waiting) >= self._capacity:
            log.warning("hints dropped, too many wait for Redis: %d", len(job_ids))
            return
        self._waiting.append((lane, job_ids, together))
        self._wake.set()

    async def close(self, within: timedelta = timedelta(seconds=10)) -> None:
        """Send what still waits and stop; what takes longer is left to the sweep."""
        self._closed = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=within.total_seconds())
            await background.stop(self._task)

    async def _run(self) -> None:
        try:
            while self._waiting or not self._closed:
                await self._wake.wait()
                if hints := self._gather():
                    await self._deliver(hints)
        finally:
            await self._disconnect()

    def _gather(self) -> list[Hint]:
        """Take what waits, about a round."""
        hints: list[Hint] = []
        singles: list[str] = []
        while self._waiting and len(hints) + len(singles) < ROUND:
            lane, job_ids, together = self._waiting.popleft()
            if lane == Lane.INTERACTIVE and self._keep_up:
                singles += job_ids
            else:
                hints += [Hint(lane, some) for some in _parts(job_ids, together)]
        for some in _parts(singles, SHARED):
            options = NOW_OR_ELSEWHERE if len(some) > 1 else {}
            hints.append(Hint(Lane.INTERACTIVE, some, options))
        if not (self._waiting or self._closed):
            self._wake.clear()
        return hints

    async def _deliver(self, hints: Sequence[Hint]) -> None:
        # A connection that idled may be dead without anybody knowing, and a hint may be sent
        # twice: so a fresh connection gets a second try, unless Redis is known to be away.
        for last in (True,) if self._away else (False, True):
            try:
                async with asyncio.timeout(self._within):
                    await self._publish(hints)
            except Exception as error:  # whatever it is, this task has to go on
                await self._disconnect()
                if last:
                    await self._lose(hints, error)
            else:
                if self._away:
                    log.info("Redis is back, hints are sent again")
                self._away = False
                return

    async def _publish(self, hints: Sequence[Hint]) -> None:
        """Send these; what comes while Redis answers shares the next round."""
        redis = self._connection or await self._open()
        commands = [hint.command for hint in hints]
        await redis.send_packed_command(redis.pack_commands(commands), check_health=False)
        lengths = [await redis.read_response(timeout=math.inf) for _ in hints]
        if hints[-1].lane == Lane.INTERACTIVE:
            self._keep_up = lengths[-1] <= SHORT

    async def _open(self) -> Any:
        pool: Any = self._redis.connection_pool
        self._connection = pool.make_connection()
        await self._connection.connect()
        self._connection.socket_timeout = None  # one timer for a round, not one for each answer
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _lose(self, hints: Sequence[Hint], error: Exception) -> None:
        if not self._away:
            log.warning("Redis is away, hints are lost until it is back: %r", error)
        self._away = True
        try:
            await self._on_lost([job_id for hint in hints for job_id in hint.job_ids])
        except Exception:
            log.exception("could not note lost hints")


def _parts(job_ids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [job_ids[start : start + size] for start in range(0, len(job_ids), size)]
