"""The lines of a batch as its readers see them: in the order they ended, or as a file lists them.

Readers of results go on after a number: lines are numbered when they have ended, without gaps, by
one process, so nobody misses one and nobody sees one twice. A line that was tried anew has given
up its place to its successor, and is not shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy
from sqlalchemy import ColumnElement, and_, exists, func, literal, not_, or_
from sqlmodel import Session, col, select

from shared.batch_lines import MOST_BYTES
from shared.lifecycle import TERMINAL, JobStatus
from shared.tables import Batch, Job, JobContent

FAILED: Final = tuple(sorted(TERMINAL - {JobStatus.COMPLETED}))
"""Statuses of the lines that an error file has."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is shown of one line."""

    id: str
    """Its job's."""
    custom_id: str
    line: int
    status: str
    attempt: int
    """0: it never ran."""
    result_number: int | None
    request_id: str
    error: dict[str, Any] | None
    """A `shared.errors.Fault`."""
    completed_at: int | None
    size: int | None
    """Bytes of the stored completion; None: there is none, or retention has taken it."""
    response: bytes | None
    """The completion, if it was asked for."""


def results(
    session: Session,
    batch_id: str,
    *,
    after: int,
    limit: int,
    statuses: Sequence[str] | None = None,
) -> list[Line]:
    """The lines that have ended, by `result_number`, after that one.

    Without those that are about to be tried anew.
    """
    retry_at = select(Batch.retry_at).where(col(Batch.id) == batch_id).scalar_subquery()
    ended = select(col(Job.id)).where(
        col(Job.batch_id) == batch_id,
        col(Job.result_number) > after,
        col(Job.line).is_not(None),
        or_(retry_at.is_(None), not_(and_(*retried(retry_at)))),
    )
    if statuses is not None:
        ended = ended.where(col(Job.status).in_(statuses))
    job_ids = session.exec(ended.order_by(col(Job.result_number)).limit(limit)).all()
    return _shown(session, job_ids, with_response=True)


def retried(since: Any) -> list[ColumnElement[bool]]:
    """What holds of the lines that a retry at that moment replaces, or has yet to."""
    return [
        col(Job.line).is_not(None),
        col(Job.status).in_(FAILED),
        col(Job.completed_at) < since,
        exists().where(col(JobContent.job_id) == col(Job.id)).correlate(Job),
    ]


def to_replace(session: Session, batch: Batch, limit: int) -> list[tuple[Job, bytes]]:
    """The next lines to be tried anew, with their requests; so many bytes of them as is bearable.

    None when there are no more.
    """
    due = (
        select(col(Job.id), func.length(col(JobContent.request)))
        .join(JobContent, col(JobContent.job_id) == col(Job.id))
        .where(col(Job.batch_id) == batch.id, *retried(batch.retry_at))
    )
    chosen: list[str] = []
    size = 0
    for job_id, length in session.exec(due.order_by(col(Job.id)).limit(limit)):
        if chosen and size + length > MOST_BYTES:
            break
        chosen.append(job_id)
        size += length
    rows = select(Job, JobContent.request).join(JobContent, col(JobContent.job_id) == col(Job.id))
    return list(session.exec(rows.where(col(Job.id).in_(chosen)).order_by(col(Job.id))).all())


def lines(
    session: Session,
    batch_id: str,
    *,
    completed: bool,
    after: str | None,
    limit: int,
    with_response: bool = True,
) -> list[Line]:
    """The lines of its output file (`completed`), or of its error file, by job id."""
    found: list[str] = []
    for status in (JobStatus.COMPLETED,) if completed else FAILED:
        # One by one, so that each is a read of the index from where it goes on.
        of_it = select(col(Job.id)).where(
            col(Job.batch_id) == batch_id,
            col(Job.line).is_not(None),
            col(Job.status) == status,
            col(Job.id) > (after or ""),
        )
        found += session.exec(of_it.order_by(col(Job.id)).limit(limit))
    return _shown(session, sorted(found)[:limit], with_response=with_response)


def _shown(session: Session, job_ids: Sequence[str], *, with_response: bool) -> list[Line]:
    """These lines, in this order."""
    response = col(JobContent.response) if with_response else literal(None)
    rows = (
        sqlalchemy.select(
            col(Job.id),
            col(Job.custom_id),
            col(Job.line),
            col(Job.status),
            col(Job.attempt),
            col(Job.result_number),
            col(Job.request_id),
            col(Job.error),
            col(Job.completed_at),
            func.length(col(JobContent.response)),
            response,
        )
        .outerjoin(JobContent, col(JobContent.job_id) == col(Job.id))
        .where(col(Job.id).in_(job_ids))
    )
    found = {row[0]: Line(*row) for row in session.execute(rows)}
    return [found[job_id] for job_id in job_ids]
