"""Who is being read: jobs that live by their readers are kept from being abandoned.

Presence is a moment in the row that this process moves on while it has a reader. So a crash of the
process needs no cleaning up, and a reader on any other process counts as well.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from shared import background, clock, jobs
from shared.db import Transactions
from shared.errors import Unavailable
from shared.lifecycle import TERMINAL
from shared.tables import Job

log = structlog.get_logger()

CANCEL = "cancel"
RENEW_EVERY = 10.0
"""Seconds between two renewals, or a third of the grace if that is less."""


TRY_EVERY = 1.0
"""Seconds between two tries while the database is away."""


@dataclass(slots=True)
class Presence:
    """One reader's."""

    over: bool = False
    """The job has ended while it was read: there is nothing to wait for any more."""


class Attendance:
    """The readers of this process."""

    def __init__(self, tx: Transactions, grace: timedelta) -> None:
        self.grace_ms = clock.span(grace)
        """Milliseconds a job lives on without readers."""
        self._every = min(RENEW_EVERY, max(1.0, grace.total_seconds() / 3))
        self._tx = tx
        self._present: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def first_term(self) -> int:
        """Milliseconds a job may wait for the first renewal."""
        return self.grace_ms + round(self._every * 2000)

    def start(self) -> None:
        """Begin to renew; needs the running loop."""
        self._spawn(self._renew())

    async def stop(self) -> None:
        """Stop renewing: the grace of what is still read begins now, for another process."""
        await background.stop(*self._tasks)

    @contextmanager
    def reading(self, job: Job, *, anew: bool = False) -> Iterator[Presence]:
        """Somebody reads this job until the context ends; `anew`: it was submitted earlier."""
        presence = Presence(over=job.status in TERMINAL)
        if job.on_disconnect != CANCEL or presence.over:
            yield presence
            return
        self._present[job.id] += 1
        if anew:
            self._spawn(self._attend([job.id], self.first_term))
        try:
            yield presence
        finally:
            self._present[job.id] -= 1
            if self._present[job.id] == 0:
                del self._present[job.id]
                if not presence.over:
                    self._spawn(self._attend([job.id], self.grace_ms))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            if self._present:
                try:
                    await self._attend(list(self._present), self.first_term)
                except Exception:  # without renewals all readers would seem to have left
                    log.exception("attendance_broke")

    async def _attend(self, job_ids: list[str], for_ms: int) -> None:
        while True:
            try:
                return await self._tx(jobs.attend, job_ids, for_ms)
            except Unavailable as error:
                log.warning("attendance_not_noted", error=error.message)
            await asyncio.sleep(TRY_EVERY)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
