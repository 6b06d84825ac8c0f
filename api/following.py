"""Follow a job's log from any point to its end: the bell for what is new, the log for the truth.

1 Listen to the bell and wait for the subscription. 2 Read the log from the cursor. 3 Take what the
bell brings, dropping what was seen; a gap sends us back to the log. 4 After a quiet while look at
the log and at the row, in case the end was lost or a worker died. 5 When the job has ended, the
archive in the database serves. 6 When that is gone as well: `StreamExpired`. The reader of a new
job has listened since before its commit, and begins with 3.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import structlog
from redis.exceptions import RedisError
from sqlmodel import Session

from api.hub import Bell, Hub
from shared import ids, jobs, streams
from shared.db import Transactions
from shared.errors import NotFound, StreamExpired, Unavailable
from shared.lifecycle import TERMINAL
from shared.streams import DELTAS, END, RETRYING, STARTED, Entry
from shared.tables import Job

log = structlog.get_logger()

FROM_START: Final = -1
"""The cursor of a reader that has seen nothing, not even that the job started."""
QUIET: Final = 2.0
"""Seconds without a message after which we look for ourselves; doubled while it stays quiet."""
QUIETEST: Final = 16.0


class Follower:
    """One reader of one job, and how far it has come."""

    def __init__(
        self,
        tx: Transactions,
        hub: Hub,
        job: Job,
        *,
        after: int = FROM_START,
        since: Bell | None = None,
    ) -> None:
        """`since`: it has listened to the job since before it was committed, and still does."""
        self.job = job
        """The row as last seen; its final state once the entries have ended."""
        self._tx = tx
        self._hub = hub
        self._since = since
        self._seq = after
        self._attempt = 0
        self._log_id = "-"
        self._hole = False

    async def entries(self, quiet: float = QUIET) -> AsyncIterator[list[Entry]]:
        """The entries after the cursor as they come, the last of them the end.

        An empty list may come in between, and does when nothing happened for `quiet` seconds.
        Raises `StreamExpired` when the job has ended and neither log nor archive is left.
        """
        if self.job.status in TERMINAL:
            while not (found := await self._rest()):  # the database is away
                yield []
                await asyncio.sleep(quiet)
            yield found
            return
        async with self._hub.listen(self.job.id) as bell:
            found = await self._begin(bell)
            silent, look_at = 0.0, QUIET
            while True:
                yield found
                if found and found[-1].kind == END:
                    return
                messages = await bell.wait(quiet)
                if messages or bell.missed:
                    silent, look_at = 0.0, QUIET
                    found = self._fresh(messages, bell)
                    if bell.missed:
                        found += await self._look(bell)
                    continue
                silent, found = silent + quiet, []
                if silent >= look_at:
                    look_at = silent + min(look_at * 2, QUIETEST)
                    found = await self._look(bell)

    async def _begin(self, bell: Bell) -> list[Entry]:
        if self._since is None:
            return await self._from_log(bell)
        bell.take_over(self._since)
        return []

    def _fresh(self, messages: list[bytes], bell: Bell) -> list[Entry]:
        """What the bell brought and we have not seen; a gap is noted as missed."""
        fresh: list[Entry] = []
        for message in messages:
            entry = streams.parse_message(message)
            if self._seen(entry):
                continue
            if self._hole and entry.kind != END:
                continue
            if self._hole or not self._follows(entry):
                bell.miss()
                break
            fresh.append(self._advance(entry))
        return fresh

    async def _from_log(self, bell: Bell) -> list[Entry]:
        """What the log has beyond the cursor. A hole in it is left for the archive to fill."""
        bell.caught_up()
        try:
            entries = await streams.read(self._hub.redis, self.job.id, after=self._log_id)
        except (RedisError, OSError) as error:
            log.warning("log_away", job_id=self.job.id, error=str(error))
            return []
        found: list[Entry] = []
        for entry in entries:
            if self._seen(entry):
                continue
            if entry.kind == END and (self._hole or not self._follows(entry)):
                return found + await self._rest()
            if self._hole or not self._follows(entry):
                self._hole = True
                return found
            found.append(self._advance(entry))
        return found

    async def _look(self, bell: Bell) -> list[Entry]:
        """Is there more in the log, or has the job ended unheard, or without a log?"""
        return await self._from_log(bell) or await self._rest()

    async def _rest(self) -> list[Entry]:
        """Everything after the cursor, from the archive, once the row says that the job ended."""
        try:
            self.job, entries = await self._tx.read(self._ended)
        except Unavailable:
            return []
        return entries

    def _ended(self, session: Session) -> tuple[Job, list[Entry]]:
        # One that has ended stays as it is.
        job = self.job if self.job.status in TERMINAL else _reload(session, self.job)
        return job, self._archive(session, job) if job.status in TERMINAL else []

    def _archive(self, session: Session, job: Job) -> list[Entry]:
        """The stored log after the cursor, and the end."""
        kept = jobs.content(session, job.id)
        if kept.log is None and job.deltas > 0:
            link = f"/v1/chat/completions/{ids.COMPLETION}{job.id}"
            raise StreamExpired(f"The stream is gone; its result is at {link}.")
        lines = streams.unpack(kept.log) if kept.log else []
        skipped = max(0, self._seq + 1 - kept.log_first_seq)
        left = lines[skipped:]
        end_seq = max(_end_of(job), kept.log_first_seq + job.deltas)
        entries = []
        if job.attempt and self._seq < kept.log_first_seq - 1:  # what was seen was said in vain
            kind = STARTED if self._seq == FROM_START else RETRYING
            marker = streams.beginning_payload(kind, job.attempt)
            entries.append(Entry(job.attempt, kept.log_first_seq - 1, kind, marker[1:]))
        if left:
            payload = streams.deltas_payload(left, deltas=job.deltas, characters=job.characters)
            entries.append(Entry(job.attempt, end_seq - 1, DELTAS, payload[1:]))
        end = streams.end_payload(job.status, error=job.error, usage=job.usage)
        return [*entries, Entry(job.attempt, end_seq, END, end[1:])]

    def _seen(self, entry: Entry) -> bool:
        known = self._attempt or entry.attempt  # at first only the number tells
        return entry.attempt <= known and entry.seq <= self._seq

    def _follows(self, entry: Entry) -> bool:
        """Whether nothing is missing between the cursor and this entry."""
        if entry.attempt > self._attempt and entry.kind in (STARTED, RETRYING):
            return True
        return entry.first_seq <= self._seq + 1

    def _advance(self, entry: Entry) -> Entry:
        """Move the cursor past an entry; returns it without what was seen."""
        seen = self._seq + 1 - entry.first_seq if entry.kind == DELTAS else 0
        self._attempt, self._seq = entry.attempt, entry.seq
        self._log_id = f"{entry.attempt}-{entry.seq}"
        if seen <= 0:
            return entry
        left = entry.deltas[seen:]
        deltas, characters = entry.progress
        payload = streams.deltas_payload(left, deltas=deltas, characters=characters)
        return Entry(entry.attempt, entry.seq, DELTAS, payload[1:])


def at_the_end(job: Job, after: int) -> bool:
    """Whether a job has ended and has nothing left for a reader who has seen this number."""
    return job.status in TERMINAL and after >= _end_of(job)


def _end_of(job: Job) -> int:
    """The number of a job's end; past all of its attempt's when the log could not be asked."""
    return job.last_seq or job.attempt * streams.ATTEMPT_STRIDE + 1


def _reload(session: Session, job: Job) -> Job:
    fresh = session.get(Job, job.id)
    if fresh is None:
        raise NotFound(f"Job {job.id!r} was deleted.")
    return fresh
