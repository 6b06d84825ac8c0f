"""What moves batches on, in small transactions: add lines, number, stop, expire, replace, end.

Each step holds the batch's row still, looks at what the rows say, and does what is left to do. So
one that was done before, or is done by two leaders at once, changes nothing, and one that a crash
undid is done again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from itertools import compress
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, func, or_, update
from sqlmodel import Session, col, select

from shared import batch_results, batches, files, ids, jobs, rendering
from shared.batch_lines import Planned
from shared.batch_progress import Counts, summarise
from shared.batches import CANCELLING, IN_PROGRESS, VALIDATING
from shared.clock import database_now
from shared.errors import Fault, IllegalTransition
from shared.lifecycle import JobStatus
from shared.tables import Batch, File, Job

EXPIRED: Final = Fault(
    504, "batch_expired", "server_error", "The batch's completion window expired before it ran."
)
UNNUMBERED: Final = (
    col(Job.completed_at).is_not(None),
    col(Job.completed_at) > 0,  # leads SQLite to the index of these
    col(Job.result_number).is_(None),
)
NO_USAGE: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Step(StrEnum):
    """What there may be to do for a batch."""

    READ = "read"
    REPLACE = "replace"
    STOP = "stop"
    EXPIRE = "expire"
    NUMBER = "number"
    END = "end"


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is in a file that shows lines."""

    lines: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """Lines that a step has ended, or asked to stop."""

    many: int = 0
    told: Sequence[Job] = ()
    """Those of them that may have a reader or a worker, who has to be told."""


def due(session: Session, limit: int, after: str = "") -> list[tuple[Batch, list[Step]]]:
    """Batches with something to do, and what: those that come `after` one, and then the first."""
    steps = _conditions()
    found = session.execute(
        select(Batch, *steps.values())
        .where(col(Batch.ended_at).is_(None), or_(*steps.values()))
        .order_by(col(Batch.id) <= after, col(Batch.id))
        .limit(limit)
    )
    return [(batch, list(compress(steps, wanted))) for batch, *wanted in found]


@cache  # the leader asks every second
def _conditions() -> dict[Step, ColumnElement[bool]]:
    """When there is what to do for an open batch."""

    def some(*which: ColumnElement[bool]) -> ColumnElement[bool]:
        of_it = (col(Job.batch_id) == col(Batch.id), col(Job.line).is_not(None))
        return exists().where(*of_it, *which).correlate(Batch)

    waits = col(Job.status) == JobStatus.QUEUED.value
    runs = col(Job.status) == JobStatus.IN_PROGRESS.value
    unasked = col(Job.cancel_requested_at).is_(None)
    unnumbered = some(*UNNUMBERED)
    cancelling = col(Batch.status) == CANCELLING
    return {
        Step.READ: col(Batch.read_lines) < col(Batch.total),
        Step.REPLACE: col(Batch.retry_at).is_not(None),
        Step.STOP: cancelling
        & (some(waits) | (col(Batch.stop_at) <= database_now()) & some(runs, unasked)),
        Step.EXPIRE: ~cancelling
        & (col(Batch.expires_at) <= database_now())
        & some(waits, col(Job.attempt) == 0),
        Step.NUMBER: unnumbered,
        Step.END: (col(Batch.read_lines) >= col(Batch.total))
        & col(Batch.retry_at).is_(None)
        & ~some(waits)
        & ~some(runs)
        & ~unnumbered,
    }


def add(session: Session, batch_id: str, start: int, planned: Sequence[Planned]) -> bool:
    """Add the lines after the first `start`; False when another leader did."""
    batch = _held(session, batch_id)
    if batch is None or batch.read_lines != start:
        return False
    _submit(session, planned)
    batch.read_lines += len(planned)
    if batch.status == VALIDATING:
        batch.status, batch.in_progress_at = IN_PROGRESS, _now(session)
        batches.tell(session, batch, Counts())
    session.flush()
    return True


def cut_short(session: Session, batch_id: str, start: int, message: str) -> None:
    """Go on without the rest of an input that is gone after `start` lines; without any, fail."""
    batch = _held(session, batch_id)
    if batch is None or batch.read_lines != start:
        return
    errors = [{"code": "input_file_gone", "line": None, "message": message, "param": None}]
    if start == 0:
        batches.fail(session, batch, errors)
    batch.total, batch.errors = start, errors
    session.flush()


def replace(session: Session, batch_id: str, since: int | None, anew: Mapping[str, Planned]) -> int:
    """Let these take the places of the jobs by whose ids they are; how many.

    They are what `batch_results.to_replace` had for a retry `since` that moment. A row that has
    ended never changes, but for its place: the old job keeps its number, its history and its
    entries in the ledger. A line whose content is gone stays as it is.
    """
    batch = _held(session, batch_id)
    if batch is None or batch.retry_at is None or batch.retry_at != since:
        return 0
    if not anew:
        batch.retry_at = None
    places = update(Job).where(col(Job.id).in_(anew), col(Job.line).is_not(None))
    given_up = session.execute(
        places.values(custom_id=None, line=None)
        .returning(col(Job.id))
        .execution_options(synchronize_session=False)
    ).scalars()
    session.flush()
    planned = [anew[job_id] for job_id in sorted(given_up)]
    _submit(session, planned)
    return len(planned)


def _submit(session: Session, planned: Sequence[Planned]) -> None:
    jobs.submit_all(session, [line.job for line in planned])
    for line in planned:
        if line.fault is not None:
            error = asdict(line.fault)
            jobs.move(session, line.job.job_id, JobStatus.FAILED, error=error)


def stop(session: Session, batch_id: str, limit: int) -> Ended:
    """Cancel lines that wait, and ask those that run once their grace is over."""
    batch = _held(session, batch_id)
    if batch is None or batch.status != CANCELLING:
        return Ended()
    unasked = col(Job.cancel_requested_at).is_(None)
    # Those that run first: they cost something.
    over = batch.stop_at is not None and batch.stop_at <= _now(session)
    running = _rest(session, batch_id, JobStatus.IN_PROGRESS, unasked, limit if over else 0)
    many = jobs.end_waiting(session, batch_id, JobStatus.CANCELLED, None, limit)
    begun = _rest(session, batch_id, JobStatus.QUEUED, unasked, limit - many)
    told = [jobs.ask_to_stop(session, line) for line in (*running, *begun)]
    return Ended(many + len(told), told)


def expire(session: Session, batch_id: str, limit: int) -> Ended:
    """End the lines that have not started in time. What runs, or is tried again, may go on."""
    batch = _held(session, batch_id)
    if batch is None or batch.status == CANCELLING or batch.expires_at > _now(session):
        return Ended()
    many = jobs.end_waiting(session, batch_id, JobStatus.EXPIRED, EXPIRED, limit)
    fresh = col(Job.attempt) == 0
    told = []
    for line in _rest(session, batch_id, JobStatus.QUEUED, fresh, limit - many):
        with suppress(IllegalTransition):  # it started since we looked
            to, error = JobStatus.EXPIRED, asdict(EXPIRED)
            told.append(jobs.move(session, line.id, to, fresh, error=error))
    return Ended(many + len(told), told)


def _rest(
    session: Session, batch_id: str, status: JobStatus, which: ColumnElement[bool], limit: int
) -> Sequence[Job]:
    """The lines that have to end one by one, once there are no others."""
    if limit <= 0:
        return ()
    lines = select(Job).where(
        col(Job.batch_id) == batch_id,
        col(Job.line).is_not(None),
        col(Job.status) == status.value,
        which,
    )
    touched = or_(col(Job.held).is_not(None), col(Job.attempt) > 0)
    return session.exec(lines.where(touched).order_by(col(Job.id)).limit(limit)).all()


def number(session: Session, batch_id: str, limit: int) -> int:
    """Give the lines that have ended the next numbers, and add up what they used; how many."""
    batch = _held(session, batch_id)
    if batch is None:
        return 0
    ended = (
        select(col(Job.id), col(Job.completed_at))
        .where(
            col(Job.batch_id) == batch_id,
            col(Job.line).is_not(None),
            *UNNUMBERED,
        )
        .order_by(col(Job.completed_at), col(Job.id))
        .limit(limit)
        .subquery()
    )
    place = func.row_number().over(order_by=(ended.c.completed_at, ended.c.id))
    places = select(ended.c.id, place.label("place")).subquery()
    numbered = session.execute(
        update(Job)
        .where(col(Job.id) == places.c.id)
        .values(result_number=places.c.place + batch.results)
        .returning(col(Job.usage), col(Job.cost))
        .execution_options(synchronize_session=False)
    ).all()
    batch.results += len(numbered)
    batch.cost += sum(cost or 0 for _, cost in numbered)
    batch.usage = _sum(batch.usage or NO_USAGE, [usage for usage, _ in numbered if usage])
    session.flush()
    return len(numbered)


def _sum(known: dict[str, Any], used: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def total(*path: str) -> int:
        return sum(_count(usage, path) for usage in used)

    cached = total("prompt_tokens_details", "cached_tokens")
    reasoning = total("completion_tokens_details", "reasoning_tokens")
    inward, outward = total("prompt_tokens"), total("completion_tokens")
    return {
        "input_tokens": known["input_tokens"] + inward,
        "input_tokens_details": {
            "cached_tokens": known["input_tokens_details"]["cached_tokens"] + cached
        },
        "output_tokens": known["output_tokens"] + outward,
        "output_tokens_details": {
            "reasoning_tokens": known["output_tokens_details"]["reasoning_tokens"] + reasoning
        },
        "total_tokens": known["total_tokens"] + inward + outward,
    }


def _count(usage: Any, path: Sequence[str]) -> int:
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) else 0


def measure(
    session: Session, batch_id: str, *, completed: bool, after: str | None, limit: int
) -> tuple[Shown, str | None]:
    """What the next lines of an output or error file come to, and where to go on; None: the end."""
    page = batch_results.lines(
        session,
        batch_id,
        completed=completed,
        after=after,
        limit=limit,
        with_response=False,
    )
    more = page[-1].id if len(page) == limit else None
    return Shown(len(page), sum(map(rendering.size, page))), more


def end(session: Session, batch_id: str, results: int, output: Shown, errors: Shown) -> bool:
    """End a batch whose lines have all ended, with files that show so much; False: not yet.

    The files were measured when it had so many `results`.
    """
    batch = _held(session, batch_id)
    ripe = select(Batch.id).where(col(Batch.id) == batch_id, _conditions()[Step.END])
    if batch is None or batch.results != results or not session.exec(ripe).first():
        return False
    lines = summarise(session, batch)
    now = _now(session)
    if batch.status == CANCELLING:
        batch.status = "cancelled"
    else:
        batch.status = "expired" if lines.expired and batch.expires_at <= now else "completed"
    batch.finalizing_at = batch.ended_at = now
    batch.output_file_id = _file(session, batch, "output", output)
    batch.error_file_id = _file(session, batch, "error", errors)
    session.flush()
    batches.tell(session, batch, lines)
    return True


def _file(session: Session, batch: Batch, kind: str, shown: Shown) -> str | None:
    if shown.lines == 0:
        return None
    kept = batch.output_expires_after
    file = File(
        id=ids.prefixed(files.PREFIX),
        account_id=batch.account_id,
        filename=f"{batch.id}_{kind}.jsonl",
        purpose=files.BATCH_OUTPUT,
        bytes=shown.bytes,
        lines=shown.lines,
        status=files.PROCESSED,
        batch_id=batch.id,
        created_at=batch.ended_at or 0,
        expires_at=None if kept is None else (batch.ended_at or 0) + kept * 1000,
    )
    session.add(file)
    return file.id


def _held(session: Session, batch_id: str) -> Batch | None:
    """An open batch, locked until this transaction ends."""
    batch = batches.held_still(session, batch_id)
    return None if batch is None or batch.ended_at is not None else batch


def _now(session: Session) -> int:
    now: int = session.execute(select(database_now())).scalar_one()
    return now
