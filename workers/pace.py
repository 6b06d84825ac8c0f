"""How often a worker listens to each of its upstreams: the more of them speak, the less often.

What one says meanwhile waits in its connection and travels together, in one entry of the log and
one write to each reader. So many streams cost less each, and come a moment late instead of ever
later. The first word of an answer, and one after a pause, waits only for the next write to Redis.
"""

import asyncio
from collections.abc import Sized
from typing import Final

TURN: Final = 0.001
"""Seconds between two readings for each job in hand: no more than a thousand in a second."""
SHORTEST, LONGEST = 0.017, 0.1
"""Seconds between two readings of one job: less is not worth a timer, more would be seen."""
GAP: Final = 0.25
"""Turns between two writes to Redis: words that come alone have company there."""


class Pace:
    """One clock for all jobs in hand, so that those that wait go on in one step of the loop."""

    def __init__(self, jobs: Sized) -> None:
        self._jobs = jobs
        self._next: asyncio.Event | None = None

    async def turn(self) -> None:
        """Wait for the next moment at which there is something worth reading; none with few."""
        if self._next is None:
            if not (pause := self._pause):
                return
            self._next = asyncio.Event()
            asyncio.get_running_loop().call_later(pause, self._go_on)
        await self._next.wait()

    @property
    def gap(self) -> float:
        """Seconds between two writes; none with few."""
        return self._pause * GAP

    @property
    def _pause(self) -> float:
        pause = len(self._jobs) * TURN
        return 0.0 if pause < SHORTEST else min(pause, LONGEST)

    def _go_on(self) -> None:
        if self._next is not None:
            self._next.set()
            self._next = None
