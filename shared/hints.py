"""Hints: who has one out, whose is lost. A job may start only while it is marked as hinted."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, update
from sqlmodel import Session, col, select

from shared import jobs
from shared.clock import database_now
from shared.lifecycle import JobStatus
from shared.tables import Job


def suspect() -> ColumnElement[bool]:
    """Whether a job may be what its workers die of: it was lost before, and this try is its last.

    It is not let in with the others while it waits; `shared.losses` lets it in.
    """
    started = case((col(Job.status) == JobStatus.QUEUED.value, 0), else_=1)
    before = col(Job.attempt) - col(Job.forgiven) - started
    return and_(col(Job.losses) > 0, before >= col(Job.max_attempts) - 1)


def stale(session: Session, lane: str, *, after_ms: int, limit: int) -> list[str]:
    """The jobs that may start and whose hint is older than that, the oldest hint first."""
    old = select(col(Job.id)).where(
        col(Job.lane) == lane, *jobs.startable(), ~suspect(), _older(after_ms)
    )
    return list(session.exec(old.order_by(col(Job.hinted_at)).limit(limit)))


def mark(
    session: Session,
    job_ids: Sequence[str],
    *,
    after_ms: int,
    also: Mapping[str, Any] | None = None,
) -> list[str]:
    """Note that these get a hint now, and other columns; returns those that still want one.

    A job that was hinted less than `after_ms` ago does not: another leader was faster.
    """
    wanting = or_(col(Job.hinted_at).is_(None), _older(after_ms))
    marked = update(Job).where(col(Job.id).in_(job_ids), *jobs.startable(), wanting)
    rows = session.execute(
        marked.values(hinted_at=database_now(), **(also or {}))
        .returning(col(Job.id))
        .execution_options(synchronize_session=False)
    )
    still = set(rows.scalars())
    return [job_id for job_id in job_ids if job_id in still]


def out(session: Session, lane: str, limit: int) -> int:
    """How many queued jobs of a lane have a hint out, counted up to `limit`."""
    found = select(col(Job.id)).where(
        col(Job.lane) == lane,
        col(Job.status) == JobStatus.QUEUED.value,
        col(Job.hinted_at).is_not(None),
    )
    return session.exec(select(func.count()).select_from(found.limit(limit).subquery())).one()


def forget(session: Session, job_ids: Sequence[str]) -> None:
    """These hints were not sent after all: the feeder will."""
    lost = update(Job).where(col(Job.id).in_(job_ids), col(Job.status) == JobStatus.QUEUED.value)
    session.execute(lost.values(hinted_at=None))


def _older(after_ms: int) -> ColumnElement[bool]:
    return col(Job.hinted_at) < database_now() - after_ms
