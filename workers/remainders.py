"""Answers of cancelled jobs, read to their end where the upstream bills them whole anyway."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from shared import background, remains
from shared.db import Transactions
from shared.errors import ServiceError
from shared.outcomes import Said
from workers.patience import insist
from workers.running import Running
from workers.upstreams.protocol import Delta

log = structlog.get_logger()

MOST: Final = 100
"""Answers that are read on at once; past that the connection is closed as everywhere else."""

Batches = AsyncGenerator[list[Delta], None]


class Remainders:
    """What is still to come in this process of answers that nobody waits for."""

    def __init__(self, tx: Transactions, *, within: timedelta, most: int = MOST) -> None:
        self._tx = tx
        self._within = within
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Close all of them; what they used stays as it was estimated."""
        await background.stop(*self._tasks)

    async def reading(self, running: Running, batches: Batches) -> Batches:
        """The same batches; closed for a cancel, they are read on without the attempt.

        Each comes by a task of its own, which a cancel of the attempt does not reach.
        """
        step = asyncio.create_task(_next(batches))
        try:
            while (batch := await asyncio.shield(step)) is not None:
                yield batch
                step = asyncio.create_task(_next(batches))
        finally:
            if running.why == "cancelled" and len(self._tasks) < self._most:
                task = asyncio.create_task(self._read_on(running, batches, step))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                await background.stop(step)
                await batches.aclose()

    async def _read_on(
        self, running: Running, batches: Batches, step: "asyncio.Task[list[Delta] | None]"
    ) -> None:
        """Listen for the usage only, within the attempt's own time, and note it."""
        usage, left = running.usage, self._within - running.age
        try:
            async with asyncio.timeout(left.total_seconds()), aclosing(batches):
                batch = await step
                while batch is not None:
                    for delta in batch:
                        usage = delta.usage or usage
                    batch = await _next(batches)
                if usage is not None:
                    said = Said(usage=usage, model=running.model.name if running.model else None)
                    count = partial(self._tx, remains.counted, running.claim.lease, said)
                    await insist(count, worth_it=lambda: True)
        except (ServiceError, TimeoutError) as error:
            log.warning("drain_broke", error=type(error).__name__)
        else:
            log.info("drained", counted=usage is not None)


async def _next(batches: Batches) -> list[Delta] | None:
    return await anext(batches, None)
