"""The UPDATE that moves a job, kept for each kind of move: to build it takes longer than to run it.

`jobs` runs it, and `completing`; jobs begin here.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    Executable,
    SQLColumnExpression,
    Text,
    any_,
    bindparam,
    false,
    func,
    insert,
    or_,
    update,
)
from sqlmodel import Session, col, select

from shared import clock, events, rows
from shared.clock import database_now
from shared.lifecycle import TERMINAL, JobStatus, leading_to
from shared.tables import Attempt, Job, JobContent

NEW: Final = "new_"
"""Before a column's name: the parameter with its new value."""
_NOW: Final = database_now()
_ONE: Final = col(Job.id) == bindparam("moved")
_AMONG: Final = {
    # One parameter, however many they are: a list would be written out, and planned, each time.
    "postgresql": col(Job.id) == any_(bindparam("moved", type_=ARRAY(Text))),
    "sqlite": col(Job.id).in_(
        select(func.json_each(bindparam("moved", type_=JSON)).table_valued("value").c.value)
    ),
}
_status: Final = col(Job.status).concat("")
"""Not plainly the column, for which PostgreSQL may search the index of all that are queued, and of
all that were until it forgets them: a job is found by its id."""
_REQUEST: Final = select(col(JobContent.request)).where(col(JobContent.job_id) == col(Job.id))


def statement(
    moved: str | Sequence[str],
    to: JobStatus,
    guards: tuple[ColumnElement[bool], ...],
    *,
    attempt: int | None = None,
    columns: Mapping[str, Any],
    whole: bool = True,
    among: ColumnElement[bool] | None = None,
) -> tuple[Executable, dict[str, Any]]:
    """The UPDATE of a job, and its parameters; with an `attempt`, of one that is in the midst of
    it. `among`: of several, in the database's own way.

    It returns what was asked (`asked`) if it begins, or whether its account has an endpoint that is
    told of its end (`wanted`); then all of the job's columns, or only its id unless `whole`.
    """
    if to in TERMINAL:
        columns = {"completed_at": _NOW, **columns, "status_reason": None}
    reckoned = {name: it for name, it in columns.items() if isinstance(it, SQLColumnExpression)}
    given = {NEW + name: it for name, it in columns.items() if name not in reckoned}
    which = (_ONE if among is None else among, *guards)
    built = _built(to, attempt is not None, which, tuple(reckoned.items()), tuple(given), whole)
    return built, {"moved": moved, "fence": attempt, **given}


@lru_cache  # an expression is itself only: callers keep those that are needed often
def _built(
    to: JobStatus,
    fenced: bool,
    which: tuple[ColumnElement[bool], ...],
    reckoned: tuple[tuple[str, SQLColumnExpression[Any]], ...],
    given: tuple[str, ...],
    whole: bool,
) -> Executable:
    conditions = [
        *which,
        # Not IN, whose list would be written out anew each time.
        or_(*(_status == status.value for status in leading_to(to))),
    ]
    if fenced:
        # A job that was taken away and waits still has the number of its last attempt.
        running = _status == JobStatus.IN_PROGRESS.value
        conditions += [running, col(Job.attempt) == bindparam("fence")]
    beside = (events.wanted() if to in TERMINAL else false()).label("wanted")
    if to == JobStatus.IN_PROGRESS:
        beside = _REQUEST.scalar_subquery().label("asked")
    columns = {**dict(reckoned), **{name.removeprefix(NEW): bindparam(name) for name in given}}
    return (
        update(Job)
        .where(*conditions)
        .values(status=to.value, **columns)
        .returning(beside, *(rows.columns(Job) if whole else [col(Job.id)]))
    )


def begin(
    session: Session, job_ids: Sequence[str], *guards: ColumnElement[bool], **columns: Any
) -> list[tuple[Job, bytes | None]]:
    """Let those of these begin for which the guards hold, and enter their attempts.

    Returns each, and what it was asked, if that is kept.
    """
    session.flush()
    connection, now = session.connection(), clock.now()
    among = _AMONG[connection.dialect.name]
    change, named = statement(job_ids, JobStatus.IN_PROGRESS, guards, columns=columns, among=among)
    at_once = connection.dialect.name == "postgresql"
    if at_once:
        change, named = _entering(change), {**named, "begun_at": now}
    found = connection.execute(change, named)
    begun = [(rows.read(session, Job, row), asked) for asked, *row in found]
    if not at_once:
        blank = {**rows.blank(Attempt), "worker_id": columns["worker_id"], "started_at": now}
        tried = ({**blank, "job_id": job.id, "number": job.attempt} for job, _ in begun)
        rows.insert(connection, Attempt, tried)
    return begun


@lru_cache
def _entering(beginning: Any) -> Executable:
    """The UPDATE of jobs that begin, and in the same statement the rows of their attempts."""
    begun = beginning.cte("begun")
    now = bindparam("begun_at", type_=BigInteger)
    row = select(begun.c.id, begun.c.attempt, begun.c.worker_id, now)
    names = ["job_id", "number", "worker_id", "started_at"]
    tried = insert(Attempt).from_select(names, row, include_defaults=False)
    return select(begun).add_cte(tried.cte("tried"))
