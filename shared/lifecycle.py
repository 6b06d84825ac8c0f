"""The statuses a job goes through, and the only ways between them.

`docs/job-lifecycle.md` draws this table; a test keeps the two equal.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Lane(StrEnum):
    """A queue of a priority class."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


NEXT: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    JobStatus.QUEUED: frozenset(
        {JobStatus.IN_PROGRESS, JobStatus.CANCELLED, JobStatus.EXPIRED, JobStatus.FAILED}
    ),
    JobStatus.IN_PROGRESS: frozenset(
        {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED}
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.EXPIRED: frozenset(),
}
TERMINAL: Final = frozenset(status for status, onward in NEXT.items() if not onward)


def leading_to(to: JobStatus) -> frozenset[JobStatus]:
    """The statuses a job may be in just before it becomes `to`."""
    return frozenset(status for status, onward in NEXT.items() if to in onward)
