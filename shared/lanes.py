"""What each lane does: how many jobs wait and run, how fast it drains, how long jobs waited."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy
from sqlalchemy import ColumnElement, Row, bindparam, func
from sqlmodel import Session, col, select

from shared.clock import database_now
from shared.lifecycle import TERMINAL, JobStatus, Lane
from shared.tables import Batch, Job

LATELY: Final = 60_000
"""Milliseconds."""
SAMPLE: Final = 2_000
"""Of the jobs that ended lately, and of those that run, so many are looked at."""


# Whoever is told when a job may start needs these, and to build them takes longer than to run them.
_RUNNING: Final = sqlalchemy.select(func.count()).where(
    col(Job.status) == JobStatus.IN_PROGRESS.value, col(Job.lane) == bindparam("wanted")
)
_LAST: Final = (
    sqlalchemy.select(*map(col, (Job.lane, Job.attempt, Job.started_at, Job.completed_at)))
    .where(col(Job.completed_at) > database_now() - LATELY)
    .order_by(col(Job.completed_at).desc())
    .limit(SAMPLE)
    .subquery()
)
# From the start of the first: what began together may end together, in no time.
_DRAINED: Final = sqlalchemy.select(
    func.count(), database_now() - func.min(_LAST.c.started_at)
).where(_LAST.c.lane == bindparam("wanted"), _LAST.c.attempt > 0)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a lane does."""

    lane: Lane
    running: int
    drained: float
    """Jobs a minute that ended, however they ended."""
    waits: list[int]
    """Milliseconds from acceptance to start of jobs that started lately, the shortest first."""

    def wait(self, share: float) -> int | None:
        """The milliseconds within which this share of the jobs started; None if none did."""
        return self.waits[int(share * (len(self.waits) - 1))] if self.waits else None


def unfinished(session: Session) -> dict[str, int]:
    """How many jobs wait and how many run."""
    counts = {}
    for status in (JobStatus.QUEUED, JobStatus.IN_PROGRESS):
        found = select(func.count()).where(col(Job.status) == status.value)
        counts[status.value] = session.exec(found).one()
    return counts


def depths(session: Session) -> Counter[str]:
    """How many jobs each lane has waiting, with those that lines of batches are yet to become.

    Takes its time when they are a million.
    """
    waiting = select(Job.lane, func.count()).where(col(Job.status) == JobStatus.QUEUED.value)
    found = Counter(dict(session.exec(waiting.group_by(Job.lane)).all()))
    unread = func.coalesce(func.sum(col(Batch.total) - col(Batch.read_lines)), 0)
    found[Lane.BATCH] += session.exec(select(unread).where(col(Batch.ended_at).is_(None))).one()
    again = select(func.count()).where(
        col(Batch.ended_at).is_(None),
        col(Batch.retry_at).is_not(None),
        col(Job.batch_id) == col(Batch.id),
        col(Job.line).is_not(None),
        col(Job.status).in_(TERMINAL - {JobStatus.COMPLETED}),
        col(Job.completed_at) < col(Batch.retry_at),
    )
    found[Lane.BATCH] += session.exec(again).one()
    return found


def running(session: Session, lane: str) -> int:
    """How many jobs of a lane run."""
    return int(session.connection().execute(_RUNNING, {"wanted": lane}).scalar_one())


def drained(session: Session, lane: Lane) -> tuple[int, float]:
    """How many jobs of a lane were run to their end lately, and in how many seconds."""
    many, milliseconds = session.connection().execute(_DRAINED, {"wanted": lane.value}).one()
    return many, (milliseconds or 0) / 1000


def paces(session: Session) -> list[Pace]:
    """How every lane did in the last minute."""
    now = session.execute(select(database_now())).scalar_one()
    runs = col(Job.status) == JobStatus.IN_PROGRESS.value
    counted = select(Job.lane, func.count()).where(runs).group_by(Job.lane)
    counts = dict(session.exec(counted).all())
    ended = _looked_at(session, col(Job.completed_at) > now - LATELY)
    begun = _looked_at(session, runs)
    # More than we look at have ended: then those took less than the minute.
    span = LATELY if len(ended) < SAMPLE else max(1, now - ended[-1].completed_at)
    return [
        Pace(
            lane,
            counts.get(lane.value, 0),
            sum(job.lane == lane for job in ended) * 60_000 / span,
            sorted(
                job.started_at - job.created_at
                for job in (*ended, *begun)
                if job.lane == lane and job.attempt == 1 and job.started_at > now - LATELY
            ),
        )
        for lane in Lane
    ]


def _looked_at(session: Session, which: ColumnElement[bool]) -> list[Row[Any]]:
    columns = (Job.lane, Job.attempt, Job.created_at, Job.started_at, Job.completed_at)
    rows = sqlalchemy.select(*map(col, columns)).where(which)
    newest_first = rows.order_by(col(Job.completed_at).desc())
    return list(session.execute(newest_first.limit(SAMPLE)))
