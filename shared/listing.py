"""Pages of an account's jobs: filters that the indexes serve, and a cursor that is the last id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, desc
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from shared import ids
from shared.errors import InvalidRequest
from shared.tables import Job, JobMetadata


@dataclass(frozen=True, slots=True)
class Filters:
    """Which jobs, in which order, from where."""

    statuses: Sequence[str] = ()
    model: str | None = None
    batch_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: int | None = None
    """Unix milliseconds, as is the next."""
    created_before: int | None = None
    with_content: bool = False
    """Not those whose content retention has deleted."""
    newest_first: bool = True
    after: str | None = None
    """The id of the last job of the page before."""
    limit: int = 20


def page(session: Session, account_id: str, filters: Filters) -> tuple[list[Job], bool]:
    """One page of an account's jobs, and whether there are more.

    Raises `InvalidRequest` for a cursor that names no job of the account.
    """
    query = select(Job).where(col(Job.account_id) == account_id, *_conditions(filters))
    for key, value in filters.metadata.items():
        pair = aliased(JobMetadata)
        query = query.join(pair, col(pair.job_id) == col(Job.id)).where(
            col(pair.account_id) == account_id, col(pair.key) == key, col(pair.value) == value
        )
    if filters.after is not None:
        cursor = _cursor(session, account_id, filters.after)
        query = query.where(col(Job.id) < cursor if filters.newest_first else col(Job.id) > cursor)
    order = desc(col(Job.id)) if filters.newest_first else col(Job.id)
    rows = session.exec(query.order_by(order).limit(filters.limit + 1)).all()
    return list(rows[: filters.limit]), len(rows) > filters.limit


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.statuses:
        found.append(col(Job.status).in_(filters.statuses))
    if filters.model is not None:
        found.append(col(Job.model) == filters.model)
    if filters.batch_id is not None:
        found.append(col(Job.batch_id) == filters.batch_id)
    if filters.with_content:
        found.append(col(Job.content_deleted_at).is_(None))
    if filters.created_after is not None:
        found.append(col(Job.created_at) > filters.created_after)
    if filters.created_before is not None:
        found.append(col(Job.created_at) < filters.created_before)
    return found


def _cursor(session: Session, account_id: str, shown_id: str) -> str:
    job_id = ids.bare(shown_id)
    known = session.get(Job, job_id) if job_id else None
    if known is None or known.account_id != account_id:
        raise InvalidRequest(f"No job {shown_id[:64]!r} to go on after.", param="after")
    return known.id
