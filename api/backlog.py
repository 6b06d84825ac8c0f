"""How many jobs wait, as of a moment ago and with what we have let in since."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from shared import background, lanes
from shared.db import Transactions
from shared.errors import QueueFull
from shared.jobs import Submission
from shared.lifecycle import Lane

LOOK_EVERY: Final = 1.0
"""Seconds."""
TRY_AGAIN_AFTER: Final = timedelta(seconds=10)


class Backlog:
    """The queue's depth by lane; counting a million rows takes a while, so no request waits."""

    def __init__(self, tx: Transactions, limit: int) -> None:
        self.depths: Counter[str] = Counter()
        self._tx = tx
        self._limit = limit
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; needs the running loop."""
        again = background.again(self._look, every=LOOK_EVERY)
        self._task = asyncio.create_task(again, name="backlog")

    async def stop(self) -> None:
        """Stop looking."""
        await background.stop(self._task)

    def check(self, jobs: int) -> None:
        """Raises `QueueFull` when so many more would be too many."""
        if self._limit and self.depths.total() + jobs > self._limit:
            raise QueueFull(
                f"{self.depths.total():,} jobs wait; we keep {self._limit:,} at most.",
                retry_after=TRY_AGAIN_AFTER,
            )

    def came(self, accepted: Sequence[Submission]) -> None:
        """These wait too."""
        self.depths.update(new.lane.value for new in accepted)

    def lines_came(self, lines: int) -> None:
        """So many lines of a batch will be jobs soon."""
        self.depths[Lane.BATCH] += lines

    async def _look(self) -> None:
        # While the database is away, what we knew last will do; nothing is accepted meanwhile.
        self.depths = await self._tx.read(lanes.depths)
