"""Jobs whose time is over: they expire, are stopped, or are given up with their readers."""

from collections.abc import Collection, Mapping
from dataclasses import asdict

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select, tuple_

from shared import clock
from shared.clock import database_now, due_at
from shared.errors import Fault, IllegalTransition
from shared.jobs import ask_to_stop, attend, move, turn
from shared.lifecycle import JobStatus
from shared.tables import Job


def expire(session: Session, limit: int) -> list[Job]:
    """End the jobs whose deadline passed before they could start; returns them."""
    due = select(col(Job.account_id), col(Job.id)).where(
        col(Job.status) == JobStatus.QUEUED.value,
        col(Job.expires_at) <= database_now(),
        col(Job.attempt) == 0,
    )
    fault = Fault(504, "job_expired", "server_error", "Its deadline passed before it could start.")
    ended = []
    for _, job_id in sorted(session.exec(due.limit(limit)).all()):
        try:
            ended.append(move(session, job_id, JobStatus.EXPIRED, error=asdict(fault)))
        except IllegalTransition:
            continue  # it started, or was cancelled, since we looked
    return ended


def overdue(session: Session, limit: int) -> list[Job]:
    """Stop the jobs that were to be stopped by now, wherever they are; returns them.

    One that never started expires; what a running one has said until then is kept.
    """
    due = select(Job).where(
        col(Job.stop_at).is_not(None),
        col(Job.stop_at) < database_now(),
        col(Job.completed_at).is_(None),
        col(Job.cancel_requested_at).is_(None),
    )
    fault = asdict(
        Fault(504, "deadline_exceeded", "server_error", "It was stopped at its deadline.")
    )
    stopped = []
    for job in sorted(session.exec(due.limit(limit)).all(), key=turn):
        session.refresh(job, with_for_update=True)
        if job.status == JobStatus.QUEUED:
            to = JobStatus.CANCELLED if job.attempt else JobStatus.EXPIRED
            job = move(session, job.id, to, error=fault)
        elif job.status == JobStatus.IN_PROGRESS:
            job.cancel_requested_at, job.error = clock.now(), fault
            session.flush()
        stopped.append(job)
    return stopped


def lapsing(session: Session, within_ms: int, limit: int) -> dict[str, int | None]:
    """The jobs that nobody was noted to read lately, and until when they wait, soonest first."""
    until = col(Job.attended_until)
    soon = select(col(Job.id), until).where(*_unattended(within_ms)).order_by(until)
    return dict(session.exec(soon.limit(limit)).all())


def heard(session: Session, waiting: Mapping[str, int | None], for_ms: int) -> None:
    """Somebody reads these, as it turns out, unless their api has noted something since."""
    same = tuple_(col(Job.id), col(Job.attended_until)).in_(waiting.items())
    free = select(col(Job.id)).where(same).with_for_update(skip_locked=True)
    attend(session, session.exec(free).all(), for_ms)


def abandoned(session: Session, job_ids: Collection[str]) -> list[Job]:
    """Stop those of these jobs that nobody has read for longer than their grace; returns them."""
    lapsed = select(Job).where(col(Job.id).in_(job_ids), *_unattended(0))
    return [ask_to_stop(session, job) for job in sorted(session.exec(lapsed).all(), key=turn)]


def _unattended(within_ms: int) -> tuple[ColumnElement[bool], ...]:
    return (
        col(Job.attended_until).is_not(None),
        col(Job.attended_until) < due_at(within_ms),
        col(Job.completed_at).is_(None),
        col(Job.cancel_requested_at).is_(None),
    )
