"""Tokens that jobs in the background set aside and did not take: given back by the hundred."""

import asyncio

from redis.asyncio import Redis

from shared import buckets
from shared.tables import Job


class Refunds:
    """Jobs that ended while a round trip is under way share the next one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owed: list[Job] = []
        self._giving: asyncio.Task[None] | None = None

    def owed(self, job: Job) -> None:
        """Put right soon what this job took; nobody waits for it."""
        if buckets.noted(job) is None:
            return
        self._owed.append(job)
        if self._giving is None:
            self._giving = asyncio.create_task(self._give(), name="refunds")

    async def stop(self) -> None:
        """Wait for what is under way: it takes a moment, and without Redis no longer."""
        if self._giving is not None:
            await self._giving

    async def _give(self) -> None:
        try:
            while self._owed:
                some, self._owed = self._owed, []
                await buckets.put_right(self._redis, some)
        finally:
            self._giving = None
