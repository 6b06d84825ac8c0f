"""Watches the credits set aside: since when, whether accounts agree with jobs, what is unpaid."""

import asyncio
import math
from typing import Final

import structlog

from api.middleware import Metrics
from shared import background, ledger
from shared.db import Transactions
from shared.errors import Unavailable
from shared.prices import NANO, shown

log = structlog.get_logger()

LOOK_EVERY: Final = 30.0
"""Seconds; all open jobs are added up, so no scrape waits for it."""


class Holds:
    """Keeps the metrics of what is set aside; they are NaN while nobody could look."""

    def __init__(self, tx: Transactions, metrics: Metrics, *, every: float = LOOK_EVERY) -> None:
        self._tx = tx
        self._metrics = metrics
        self._every = every
        self._drift = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; needs the running loop."""
        self._show(math.nan, math.nan, math.nan)
        again = background.again(self._look, every=self._every)
        self._task = asyncio.create_task(again, name="holds")

    async def stop(self) -> None:
        """Stop looking."""
        await background.stop(self._task)

    async def _look(self) -> None:
        try:
            held = await self._tx.read(ledger.held)
        except Unavailable:
            self._show(math.nan, math.nan, math.nan)
            raise
        self._show(held.oldest_ms / 1000, held.drift / NANO, held.unpaid / NANO)
        if held.drift not in (0, self._drift):
            log.error("holds_drift", credits=shown(held.drift))
        self._drift = held.drift

    def _show(self, oldest_seconds: float, drift: float, unpaid: float) -> None:
        self._metrics.oldest_hold.set(oldest_seconds)
        self._metrics.drift.set(drift)
        self._metrics.unpaid.set(unpaid)
