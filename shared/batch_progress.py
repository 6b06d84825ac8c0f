"""How far batches are: counts, speed, what went wrong, and what they wait for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import and_, case, func, not_
from sqlmodel import Session, col, select

from shared import allowances, batch_results, leases
from shared.clock import database_now
from shared.lifecycle import JobStatus
from shared.tables import Account, Batch, Job

NAMES: Final = {JobStatus.IN_PROGRESS.value: "running"}
"""What counts call the lines of a status, if not by its name."""
NEVER_RAN: Final = {"expired": "batch_expired", "cancelled": "batch_cancelled"}
"""The error codes of lines that were not allowed to finish."""
LATELY: Final = 60_000
"""Milliseconds whose ends tell how fast it goes."""
NEWEST: Final = 1_000
"""Ends that are looked at for that."""
ENOUGH: Final = 2


@dataclass(slots=True)
class Counts:
    """A batch's lines by status, as their rows say.

    What is not read yet is queued, and what is about to be tried anew is queued again.
    """

    total: int = 0
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


def counts(session: Session, batches: Sequence[Batch]) -> dict[str, Counts]:
    """The lines of each of these batches by status, by the batch's id.

    Those of one that has ended were written down with its end, and change no more.
    """
    known = {batch.id: Counts(**batch.summary["counts"]) for batch in batches if batch.summary}
    rest = [batch for batch in batches if not batch.summary]
    return known | (counted(session, rest) if rest else {})


def summarise(session: Session, batch: Batch) -> Counts:
    """Write down, with a batch's end, how its lines ended."""
    lines = counted(session, [batch])[batch.id]
    batch.summary = {"counts": asdict(lines), "errors": error_summary(session, batch)}
    return lines


def counted(session: Session, batches: Sequence[Batch]) -> dict[str, Counts]:
    """The same, as the lines' rows say now."""
    found = {
        batch.id: Counts(total=batch.total, queued=batch.total - batch.read_lines)
        for batch in batches
    }
    lines = (
        select(Job.batch_id, Job.status, func.count())
        .where(col(Job.batch_id).in_(found), col(Job.line).is_not(None))
        .group_by(col(Job.batch_id), col(Job.status))
    )
    for batch_id, status, count in session.exec(lines):
        _add(found[str(batch_id)], status, count)
    for batch in batches:
        if batch.retry_at is not None:
            _queue_again(session, batch, found[batch.id])
    return found


def _queue_again(session: Session, batch: Batch, lines: Counts) -> None:
    again = (
        select(Job.status, func.count())
        .where(col(Job.batch_id) == batch.id, *batch_results.retried(batch.retry_at))
        .group_by(col(Job.status))
    )
    for status, count in session.exec(again):
        _add(lines, status, -count)
        lines.queued += count


def _add(lines: Counts, status: str, count: int) -> None:
    name = NAMES.get(status, status)
    setattr(lines, name, getattr(lines, name) + count)


def error_summary(session: Session, batch: Batch) -> list[dict[str, Any]]:
    """What its lines failed of, most frequent first: `code`, `count`, and a `sample` message."""
    if batch.summary is not None:
        known: list[dict[str, Any]] = batch.summary["errors"]
        return known
    own = col(Job.error)["code"].as_string()
    code = case(NEVER_RAN, value=col(Job.status), else_=own).label("code")
    failed = (
        select(code, func.count().label("count"), func.min(col(Job.id)))
        .where(
            col(Job.batch_id) == batch.id,
            col(Job.line).is_not(None),
            col(Job.status).in_(batch_results.FAILED),
        )
        .group_by(code)
    )
    if batch.retry_at is not None:
        failed = failed.where(not_(and_(*batch_results.retried(batch.retry_at))))
    groups = session.exec(failed).all()
    firsts = select(Job.id, Job.error).where(col(Job.id).in_([first for *_, first in groups]))
    faults = dict(session.exec(firsts).all())
    return [
        {"code": code, "count": count, "sample": (faults[first] or {}).get("message")}
        for code, count, first in sorted(groups, key=lambda group: (-group[1], group[0]))
    ]


def status_reason(session: Session, batch: Batch) -> str | None:
    """What an open batch waits for while none of its lines runs; None when it does not wait."""
    if batch.paused_at is not None and batch.ended_at is None:
        return "paused"
    if batch.status != "in_progress" or _first(session, batch, JobStatus.IN_PROGRESS):
        return None
    waiting = _first(session, batch, JobStatus.QUEUED)
    if waiting is None:
        return None
    if waiting.hold_due is not None:
        account = session.get_one(Account, batch.account_id)
        if account.credits < waiting.hold_due:
            return "waiting_for_credits"
        left = allowances.left(session, batch.key_id)
        if left is not None and left < waiting.hold_due:
            return "waiting_for_key_limit"
    if leases.slots(session) == 0:
        return "waiting_for_worker"
    return waiting.status_reason


def _first(session: Session, batch: Batch, status: JobStatus) -> Job | None:
    lines = select(Job).where(
        col(Job.batch_id) == batch.id,
        col(Job.line).is_not(None),
        col(Job.status) == status.value,
    )
    return session.exec(lines.order_by(col(Job.id)).limit(1)).first()


def rate(session: Session, batch: Batch) -> float | None:
    """Lines a second that ended lately, of those that ran; None when too few did to tell."""
    ran = select(func.count(), func.min(Job.completed_at), database_now()).where(
        col(Job.batch_id) == batch.id,
        col(Job.result_number) > batch.results - NEWEST,
        col(Job.completed_at) > database_now() - LATELY,
        col(Job.attempt) > 0,
    )
    ended, since, now = session.exec(ran).one()
    if ended < ENOUGH or since is None or now <= since:
        return None
    return float(ended * 1000 / (now - since))
