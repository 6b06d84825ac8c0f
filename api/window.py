"""How many hints the broker may hold: past that, jobs wait in the database and are let in later."""

import asyncio
from contextlib import suppress

from redis.asyncio import Redis

from shared import background
from shared.lifecycle import Lane
from shared.queue import OVERFLOWS, queue_key

LOOK_EVERY = 1.0
"""Seconds between two looks at the length of the queue."""


class Window:
    """The interactive lane's queue, as full as it was a moment ago and as we have filled it since.

    Batch jobs never go in from here: the feeder lets in as many as there are slots for.
    """

    def __init__(self, redis: Redis, size: int) -> None:
        self._redis = redis
        self._size = size
        self._depth = 0
        self._overflows = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; needs the running loop."""
        self._task = asyncio.create_task(self._look(), name="window")

    async def stop(self) -> None:
        """Stop looking."""
        await background.stop(self._task)

    def admits(self, lane: Lane) -> bool:
        """Whether a job of this lane may be hinted at once.

        Not while others wait in the database: it would overtake them.
        """
        return lane == Lane.INTERACTIVE and self._depth < self._size and not self._overflows

    def sent(self, lane: Lane, hints: int) -> None:
        """So many hints went in."""
        if lane == Lane.INTERACTIVE:
            self._depth += hints

    async def _look(self) -> None:
        while True:
            with suppress(Exception):  # Redis is away: what we knew last will do
                self._overflows = await self._redis.exists(OVERFLOWS) > 0
                self._depth = int(await self._redis.llen(queue_key(Lane.INTERACTIVE.value)))
            await asyncio.sleep(LOOK_EVERY)
