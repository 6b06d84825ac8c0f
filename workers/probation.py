"""Lets suspects in, few at a time: jobs that may be what their workers died of (ADR 10)."""

from collections.abc import Awaitable, Callable, Sequence

from shared import losses
from shared.db import Transactions
from shared.lifecycle import Lane

MOST = 64
"""Suspects that are let in together, at most."""


class Probation:
    """One group at a time. Each that does no harm lets the next be twice as large."""

    def __init__(
        self,
        tx: Transactions,
        hint: Callable[[Lane, Sequence[str]], Awaitable[None]],
        *,
        stale_ms: int,
        lease_ms: int,
    ) -> None:
        self._tx = tx
        self._hint = hint
        self._times = {"stale_ms": stale_ms, "lease_ms": lease_ms}
        self._size = 1
        self._group: set[str] = set()

    def a_worker_was_lost(self) -> None:
        """Begin again with one: a suspect may have done it."""
        self._size, self._group = 1, set()

    async def turn(self) -> None:
        """Let the next group in, once nobody is on probation."""
        found = await self._tx.read(losses.suspects, **self._times, limit=MOST)
        if found.on_probation or not found.waiting:
            return
        # Those that wait again, their hint lost or their worker on its way out, have shown nothing.
        if self._group and self._group.isdisjoint(job.id for job in found.waiting):
            self._size = min(2 * self._size, MOST)
        chosen = found.waiting[: self._size]
        self._group = {job.id for job in chosen}
        for lane in Lane:
            await self._hint(lane, [job.id for job in chosen if job.lane == lane])
