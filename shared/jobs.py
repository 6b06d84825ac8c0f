"""Jobs: submit, find, cancel, delete. A status changes in `move`, `end_waiting`, `moving.begin`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, bindparam, delete, or_, update
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from shared import clock, events, ids, ledger, moving, rows
from shared.clock import database_now, due_at
from shared.errors import ContentExpired, Fault, IllegalTransition, InvalidRequest, NotFound
from shared.lifecycle import TERMINAL, JobStatus, Lane
from shared.prices import Prices
from shared.tables import Attempt, Job, JobContent, JobMetadata

_NOW: Final = select(database_now())
_CHARGED: Final = (
    update(Job)
    .where(col(Job.id) == bindparam("moved"))
    .values(cost=bindparam("charged"), unpaid=bindparam("lacking", type_=BigInteger))
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to finish one attempt."""

    job_id: str
    attempt: int
    worker_id: str


@dataclass(slots=True)  # not frozen: to make one would take three times as long
class Submission:
    """A validated request, ready to become a job."""

    account_id: str
    request_id: str
    model: str
    body: bytes
    key_id: str | None = None
    lane: Lane = Lane.INTERACTIVE
    stream: bool = False
    include_usage: bool = False
    background: bool = False
    attended_for: int | None = None
    """Milliseconds it may live without a reader; None: for ever."""
    run_at: int | None = None
    expires_at: int | None = None
    stop_after: int | None = None
    """Milliseconds after which it is stopped, wherever it is; None: never."""
    max_attempts: int = 3
    metadata: dict[str, str] | None = None
    hinted: bool = True
    """A hint follows the commit; otherwise it waits for its turn."""
    hold: int = 0
    """Nano-credits to set aside: the most it may cost; 0 when it is free."""
    hold_due: int = 0
    """The same, but set aside only when it is let into the queue."""
    prices: dict[str, list[str]] | None = None
    """What each model that may answer it costs now, by name: `Prices.snapshot`."""
    prompt_tokens: int = 0
    """About how many; with the next, what rate limits reckon with."""
    output_tokens: int = 0
    """The most that the model it asks for may say."""
    left_out: Sequence[str] = ()
    """Fields that the model it asks for lacks, and does not get; see `shared.features`."""
    fingerprint: bytes | None = None
    """Of the request, if it may come again by itself; see `shared.idempotency`."""
    webhook: dict[str, Any] | None = None
    """Where its end is told, besides the account's endpoints."""
    batch_id: str | None = None
    custom_id: str | None = None
    line: int | None = None
    """Its place in that batch, from 1 on."""
    job_id: str = field(default_factory=ids.new_id)


def submit(session: Session, new: Submission) -> Job:
    """Accept a request: leave a queued job. Hint it once this has committed."""
    submit_all(session, [new])
    return session.get_one(Job, new.job_id)


def submit_all(session: Session, many: Sequence[Submission]) -> list[Job]:
    """Accept all of them, or, when one raises, none. What they became is there to be looked at.

    Raises what `ledger.hold` does.
    """
    if not many:
        return []
    now = None
    for account_id, key_id in {(new.account_id, new.key_id): None for new in many if new.hold}:
        own = {new.job_id: new.hold for new in many if new.hold and new.key_id == key_id}
        now = ledger.hold(session, account_id, own, key_id=key_id)
    session.flush()
    connection = session.connection()
    now = now or connection.execute(_NOW).scalar_one()
    values = [_values(new, now) for new in many]
    rows.insert(connection, Job, values)
    kept = rows.blank(JobContent)
    asked = ({**kept, "job_id": new.job_id, "request": new.body} for new in many)
    rows.insert(connection, JobContent, asked)
    pairs = (_pairs(new.job_id, new.account_id, new.metadata) for new in many if new.metadata)
    rows.insert(connection, JobMetadata, chain.from_iterable(pairs))
    return [rows.seen(Job, each) for each in values]


def _values(new: Submission, now: int) -> dict[str, Any]:
    return {
        **rows.blank(Job),
        "id": new.job_id,
        "account_id": new.account_id,
        "key_id": new.key_id,
        "request_id": new.request_id,
        "fingerprint": new.fingerprint,
        "batch_id": new.batch_id,
        "custom_id": new.custom_id,
        "line": new.line,
        "model": new.model,
        "lane": new.lane.value,
        "stream": new.stream,
        "include_usage": new.include_usage,
        "background": new.background,
        "on_disconnect": "continue" if new.attended_for is None else "cancel",
        "status_reason": "waiting_for_worker" if new.run_at is None else "scheduled",
        "max_attempts": new.max_attempts,
        "created_at": now,
        "run_at": new.run_at,
        "hinted_at": now if new.hinted and new.run_at is None else None,
        "expires_at": new.expires_at,
        "stop_at": None if new.stop_after is None else now + new.stop_after,
        "attended_until": None if new.attended_for is None else now + new.attended_for,
        "held": new.hold or None,
        "hold_due": new.hold_due or None,
        "prices": new.prices if new.hold or new.hold_due else None,
        "job_metadata": new.metadata,
        "webhook": new.webhook,
    }


def find(session: Session, account_id: str, shown_id: str) -> Job:
    """The account's job behind any of its three ids. Raises `NotFound`."""
    job_id = ids.bare(shown_id)
    job = rows.get(session, Job, job_id) if job_id else None
    if job is None or job.account_id != account_id:
        raise NotFound(f"There is no job {shown_id[:64]!r}.")
    return job


def content(session: Session, job_id: str) -> JobContent:
    """What was asked and said. Raises `ContentExpired`, or `NotFound` when the job was deleted."""
    kept = session.get(JobContent, job_id)
    if kept is None:
        job = session.get(Job, job_id)
        if job is not None:
            check_content(job)
        raise NotFound(f"There is no job {job_id!r}.")
    return kept


def check_content(job: Job) -> None:
    """Raise `ContentExpired` if retention has taken what was asked and said."""
    if job.content_deleted_at is not None:
        where = f"/v1/jobs/{ids.JOB}{job.id}"
        raise ContentExpired(f"Its content was kept long enough and deleted. The rest: {where}.")


def responses(session: Session, job_ids: Sequence[str]) -> dict[str, bytes | None]:
    """The stored completions of these jobs, without those whose content is gone."""
    kept = select(JobContent.job_id, JobContent.response)
    return dict(session.exec(kept.where(col(JobContent.job_id).in_(job_ids))).all())


def attempts(session: Session, job_id: str) -> list[Attempt]:
    """Every try, oldest first."""
    tries = select(Attempt).where(col(Attempt.job_id) == job_id).order_by(col(Attempt.number))
    return list(session.exec(tries))


def move(
    session: Session,
    job_id: str,
    to: JobStatus,
    *guards: ColumnElement[bool],
    held: Lease | None = None,
    bill: str | None = None,
    **columns: Any,
) -> Job:
    """Change a job's status, or raise `IllegalTransition` and change nothing.

    One guarded UPDATE: when two race, the database picks the winner. What was held for a job that
    ends is released with it; with `bill`, its usage is charged at the price of the model of that
    name.
    """
    attempt = None if held is None else held.attempt
    change, named = moving.statement(job_id, to, guards, attempt=attempt, columns=columns)
    session.flush()
    done = session.connection().execute(change, named).one_or_none()
    if done is None:
        raise IllegalTransition(f"Job {job_id!r} can no longer become {to.value!r}.")
    moved = rows.load(session, Job, done[1:])
    if to in TERMINAL and moved.held is not None:
        _charge(session, moved, price(moved.prices, bill, moved.usage))
    if to in TERMINAL and (moved.webhook is not None or done.wanted):
        events.job_ended(session, moved)
    return moved


def _charge(session: Session, job: Job, cost: int) -> None:
    charged = ledger.settle(session, job, cost)
    lacking = cost - charged or None
    set_committed_value(job, "cost", charged)
    set_committed_value(job, "unpaid", lacking)
    named = {"moved": job.id, "charged": charged, "lacking": lacking}
    session.connection().execute(_CHARGED, named)


def end_waiting(
    session: Session, batch_id: str, to: JobStatus, fault: Fault | None, limit: int
) -> int:
    """End so many lines of a batch that wait and have cost nothing yet; returns how many it were.

    One guarded UPDATE like that of `move`, for many. A line that money is set aside for, or that
    was tried before, is left to `move`. They have no readers to tell.
    """
    waiting = (
        select(col(Job.id))
        .where(
            col(Job.batch_id) == batch_id,
            col(Job.line).is_not(None),
            col(Job.status) == JobStatus.QUEUED.value,
            col(Job.held).is_(None),
            col(Job.attempt) == 0,
        )
        .order_by(col(Job.id))
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte()  # else PostgreSQL may look for more of them after each that it has changed
    )
    ended = session.execute(
        update(Job)
        .where(col(Job.id).in_(select(waiting.c.id)), col(Job.status) == JobStatus.QUEUED.value)
        .values(
            status=to.value,
            completed_at=database_now(),
            status_reason=None,
            error=asdict(fault) if fault else None,
        )
        .returning(col(Job.id), col(Job.webhook))
        .execution_options(synchronize_session=False)
    ).all()
    asked = events.lines_wanted(session, batch_id, to)
    told = [job_id for job_id, webhook in ended if asked or webhook]
    for job in session.exec(select(Job).where(col(Job.id).in_(told))) if told else ():
        session.refresh(job)
        events.job_ended(session, job)
    return len(ended)


def price(
    prices: Mapping[str, list[str]] | None, bill: str | None, usage: Mapping[str, Any] | None
) -> int:
    """What this usage costs in nano-credits, at the price of the model of that name."""
    priced = (prices or {}).get(bill or "")
    return Prices.kept(priced).cost(usage or {}) if priced else 0


def requeued(reason: str, *, after_ms: int = 0) -> dict[str, Any]:
    """The columns of a job that goes back to the queue."""
    return {
        "worker_id": None,
        "hinted_at": None,
        "status_reason": reason,
        "run_at": due_at(after_ms) if after_ms else None,
    }


def cancel(session: Session, account_id: str, shown_id: str) -> Job:
    """Stop a job: at once while it waits; a running one is asked to. Raises `NotFound`.

    Idempotent: a job that has ended stays as it is.
    """
    return ask_to_stop(session, find(session, account_id, shown_id))


def ask_to_stop(session: Session, job: Job) -> Job:
    """Cancel a waiting job, ask a running one to stop, leave one that has ended alone."""
    # Held still: a job that moved between two looks would not hear of it.
    session.refresh(job, with_for_update=True)
    if job.status == JobStatus.QUEUED:
        return move(session, job.id, JobStatus.CANCELLED)
    if job.status == JobStatus.IN_PROGRESS and job.cancel_requested_at is None:
        job.cancel_requested_at = clock.now()
        session.flush()
    return job


def attend(session: Session, job_ids: Sequence[str], for_ms: int) -> None:
    """Somebody reads these: they are safe from `abandoned` for so long."""
    # A row that somebody else holds is being changed, or attended: waiting for it, with other rows
    # in hand, would be the way into a deadlock.
    free = (
        select(col(Job.id))
        .where(
            col(Job.id).in_(job_ids),
            col(Job.attended_until).is_not(None),
            col(Job.completed_at).is_(None),
        )
        .with_for_update(skip_locked=True)
    )
    kept = update(Job).where(col(Job.id).in_(free)).execution_options(synchronize_session=False)
    session.execute(kept.values(attended_until=due_at(for_ms)))


def let_go_on(session: Session, job_id: str) -> None:
    """It lives on without readers from now on: somebody was told so."""
    freed = update(Job).where(col(Job.id) == job_id)
    session.execute(freed.values(on_disconnect="continue", attended_until=None))


def turn(job: Job) -> tuple[str, str]:
    """By which jobs that one transaction may end are sorted: their accounts in order.

    So do all transactions (`db.Transactions.by`). Two that took accounts crosswise would wait for
    each other.
    """
    return job.account_id, job.id


def set_metadata(
    session: Session, account_id: str, shown_id: str, metadata: dict[str, str] | None
) -> Job:
    """Replace a job's metadata. Raises `NotFound`, or `ContentExpired`."""
    job = find(session, account_id, shown_id)
    check_content(job)
    job.job_metadata = metadata
    session.execute(delete(JobMetadata).where(col(JobMetadata.job_id) == job.id))
    session.flush()
    rows.insert(session.connection(), JobMetadata, _pairs(job.id, account_id, metadata))
    return job


def remove(session: Session, account_id: str, shown_id: str) -> Job:
    """Delete a job with all that was asked and said; one that still runs must be cancelled first.

    Raises `NotFound`, or `InvalidRequest` for a job that has not ended, and for a batch's line.
    """
    job = find(session, account_id, shown_id)
    check_single(job)
    if job.status not in TERMINAL:
        raise InvalidRequest(
            f"The job is {job.status}: cancel it before you delete it.", code="job_not_ended"
        )
    session.delete(job)
    session.flush()
    return job


def check_single(job: Job) -> None:
    """Raise `InvalidRequest` if a job is a batch's line, which goes with its batch."""
    if job.batch_id is not None:
        raise InvalidRequest(
            f"The job is a line of {job.batch_id}, and goes with it.", code="job_in_batch"
        )


@cache
def startable() -> tuple[ColumnElement[bool], ...]:
    """What must hold of a job before a worker may take it."""
    return (col(Job.status) == JobStatus.QUEUED.value, *due())


def due() -> tuple[ColumnElement[bool], ...]:
    """The same of a job that is known to be queued."""
    return (
        or_(col(Job.run_at).is_(None), col(Job.run_at) <= database_now()),
        or_(
            col(Job.expires_at).is_(None),
            col(Job.expires_at) > database_now(),
            col(Job.attempt) > 0,
        ),
    )


def _pairs(
    job_id: str, account_id: str, metadata: Mapping[str, str] | None
) -> list[dict[str, str]]:
    ours = {"job_id": job_id, "account_id": account_id}
    return [{**ours, "key": key, "value": value} for key, value in (metadata or {}).items()]
