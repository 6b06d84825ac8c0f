"""What those who wait for jobs to end are given, read for all of them at once."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, select
from sqlmodel import Session, col

from shared import rows
from shared.errors import NotFound
from shared.tables import Account, Job, JobContent


class Kept(NamedTuple):
    """What there is to answer, once the job has ended."""

    response: bytes | None
    available: int | None
    """Nano-credits that its account can spend now; None of one that was free, if nobody asked."""


class Seen(NamedTuple):
    """A job as it is, with its answer as far as that was read."""

    job: Job
    kept: Kept | None = None


_SEEN: Final = (
    select(
        *rows.columns(Job), col(JobContent.job_id), col(JobContent.response), col(Account.credits)
    )
    .join_from(Job, Account)
    .outerjoin(JobContent, col(JobContent.job_id) == col(Job.id))
    .where(col(Job.id).in_(bindparam("wanted", expanding=True)))
)


def look_all(session: Session, job_ids: Sequence[str]) -> list[Seen]:
    """These jobs as they are now. Raises `NotFound` when one was deleted."""
    found = {}
    for row in session.connection().execute(_SEEN, {"wanted": [*job_ids]}):
        *columns, kept_id, response, available = row
        job = rows.read(session, Job, columns)
        found[job.id] = Seen(job, None if kept_id is None else Kept(response, available))
    for job_id in job_ids:
        if job_id not in found:
            raise NotFound(f"There is no job {job_id!r}.")
    return [found[job_id] for job_id in job_ids]
