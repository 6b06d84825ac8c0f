"""How batches come along, looked up once for all who follow the same one in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlmodel import Session

from shared import background, batch_progress, batches
from shared.batch_progress import Counts
from shared.db import Transactions
from shared.errors import NotFound, Unavailable
from shared.tables import Batch

log = structlog.get_logger()

LOOK_EVERY: Final = 0.5
"""Seconds between two looks while things change; half as many again each time nothing did."""
SELDOM: Final = 2.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A batch as its rows have it."""

    batch: Batch
    counts: Counts
    rate: float | None
    """Lines a second."""
    reason: str | None
    """What it waits for."""

    @property
    def told(self) -> tuple[Any, ...]:
        """What makes it worth telling; the rate alone changes all the time."""
        return self.batch.model_dump(), self.counts, self.reason

    @property
    def eta(self) -> int | None:
        """Seconds until its lines have ended, if it goes on like this; None: nobody knows."""
        left = self.counts.queued + self.counts.running
        if self.batch.ended_at is not None or not self.rate:
            return None
        return round(left / self.rate)


def look(session: Session, account_id: str, batch_id: str) -> Progress:
    """One batch. Raises `NotFound`."""
    return of(session, [batches.find(session, account_id, batch_id)])[0]


def of(session: Session, rows: list[Batch]) -> list[Progress]:
    """These batches."""
    counts = batch_progress.counts(session, rows)
    return [
        Progress(
            row,
            counts[row.id],
            rate=None if row.ended_at else batch_progress.rate(session, row),
            reason=None if row.ended_at else batch_progress.status_reason(session, row),
        )
        for row in rows
    ]


class Watch:
    """One batch that somebody follows."""

    def __init__(self, progress: Progress) -> None:
        self.progress: Progress = progress
        """As of the last look."""
        self.over = False
        """It has ended, or was deleted: there will be no further look."""
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def changed(self, within: float) -> None:
        """Return when something changes, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._changed.wait()

    def show(self, progress: Progress) -> bool:
        """Take note of what a look found; whether that is new."""
        if progress.told == self.progress.told:
            return False
        self.progress = progress
        self.wake()
        return True

    def wake(self) -> None:
        """Have every reader look at this."""
        self._changed.set()
        self._changed = asyncio.Event()


class Watches:
    """The batches that are followed in this process."""

    def __init__(self, tx: Transactions) -> None:
        self._tx = tx
        self._watches: dict[str, Watch] = {}

    @asynccontextmanager
    async def following(self, account_id: str, batch_id: str) -> AsyncIterator[Watch]:
        """Follow a batch. Raises `NotFound`."""
        progress = await self._tx.read(look, account_id, batch_id)
        watch = self._watches.get(batch_id)
        if watch is None or watch.over:
            watch = self._watches[batch_id] = Watch(progress)
            watch.over = progress.batch.ended_at is not None
            if not watch.over:
                watch.task = asyncio.create_task(self._look(watch), name="progress")
        watch.readers += 1
        try:
            yield watch
        finally:
            watch.readers -= 1
            if not watch.readers:
                if self._watches.get(batch_id) is watch:
                    del self._watches[batch_id]
                await background.stop(watch.task)

    def wake(self) -> None:
        """Have everybody look up: this process is about to stop."""
        for watch in self._watches.values():
            watch.wake()

    async def _look(self, watch: Watch) -> None:
        account_id, batch_id = watch.progress.batch.account_id, watch.progress.batch.id
        pause = LOOK_EVERY
        while not watch.over:
            await asyncio.sleep(pause)
            pause = min(SELDOM, pause * 1.5)
            try:
                found = await self._tx.read(look, account_id, batch_id)
            except Unavailable:
                continue
            except NotFound:
                watch.over = True
            except Exception:  # its readers would wait for ever
                log.exception("progress_broke")
            else:
                watch.over = found.batch.ended_at is not None
                if watch.show(found):
                    pause = LOOK_EVERY
        watch.wake()
