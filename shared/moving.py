"""The UPDATE that moves a job, kept for each kind of move: to build it takes longer than to run it.

`jobs.move` alone runs it.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Executable, SQLColumnExpression, bindparam, false, update
from sqlmodel import col

from shared import events
from shared.clock import database_now
from shared.lifecycle import TERMINAL, JobStatus, leading_to
from shared.tables import Job

NEW: Final = "new_"
"""Before a column's name: the parameter with its new value."""
_NOW: Final = database_now()


def statement(
    job_id: str,
    to: JobStatus,
    guards: tuple[ColumnElement[bool], ...],
    *,
    attempt: int | None,
    columns: Mapping[str, Any],
) -> tuple[Executable, dict[str, Any]]:
    """The UPDATE, and its parameters; with an `attempt`, of a job that is in the midst of it.

    It returns the job, and whether its account has an endpoint that is told of its end.
    """
    if to in TERMINAL:
        columns = {"completed_at": _NOW, **columns, "status_reason": None}
    reckoned = {name: it for name, it in columns.items() if isinstance(it, SQLColumnExpression)}
    given = {NEW + name: it for name, it in columns.items() if name not in reckoned}
    built = _built(to, attempt is not None, guards, tuple(reckoned.items()), tuple(given))
    return built, {"moved": job_id, "fence": attempt, **given}


@lru_cache  # an expression is itself only: callers keep those that are needed often
def _built(
    to: JobStatus,
    fenced: bool,
    guards: tuple[ColumnElement[bool], ...],
    reckoned: tuple[tuple[str, SQLColumnExpression[Any]], ...],
    given: tuple[str, ...],
) -> Executable:
    conditions = [
        col(Job.id) == bindparam("moved"),
        col(Job.status).in_([status.value for status in leading_to(to)]),
        *guards,
    ]
    if fenced:
        # A job that was taken away and waits still has the number of its last attempt.
        running = col(Job.status) == JobStatus.IN_PROGRESS.value
        conditions += [running, col(Job.attempt) == bindparam("fence")]
    columns = {**dict(reckoned), **{name.removeprefix(NEW): bindparam(name) for name in given}}
    return (
        update(Job)
        .where(*conditions)
        .values(status=to.value, **columns)
        .returning(Job, events.wanted() if to in TERMINAL else false())
        .execution_options(synchronize_session=False, populate_existing=True)
    )
