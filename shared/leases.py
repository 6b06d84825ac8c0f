"""Leases: a worker process's right to finish what it claimed. Claim, beat, settle, rescue.

The protocol is `docs/adr/0001`: the attempt number is the fence, the worker's row is the lease.
"""

import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, func, or_, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from shared import clock, ids, jobs, streams
from shared.clock import database_now
from shared.errors import Fault, IllegalTransition, WorkerLost
from shared.jobs import Lease
from shared.lifecycle import TERMINAL, JobStatus
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Retry, Said
from shared.tables import Attempt, Job, JobContent, Leader, Worker


@dataclass(frozen=True, slots=True)
class Claim:
    """A job in hand: the only read an attempt needs."""

    lease: Lease
    job: Job
    request: bytes

    @property
    def tries(self) -> int:
        """Attempts that count so far, this one included."""
        return self.job.attempt - self.job.forgiven


def register(session: Session, *, pid: int, slots: int, models: Sequence[str]) -> str:
    """Enter a worker process; returns the id of its lease, which no other ever had."""
    worker = Worker(
        id=ids.prefixed("wkr_"),
        host=socket.gethostname(),
        pid=pid,
        slots=slots,
        models=list(models),
    )
    session.add(worker)
    session.flush()
    return worker.id


def beat(session: Session, worker_id: str) -> list[str] | None:
    """Keep the lease; returns the jobs it should stop, or None when the lease is lost."""
    kept = update(Worker).where(col(Worker.id) == worker_id, col(Worker.alive))
    if _rows(session, kept.values(beats=col(Worker.beats) + 1)) == 0:
        return None
    asked = select(col(Job.id)).where(
        col(Job.worker_id) == worker_id,
        col(Job.status) == JobStatus.IN_PROGRESS.value,
        col(Job.cancel_requested_at).is_not(None),
    )
    return list(session.exec(asked).all())


def retire(session: Session, worker_id: str) -> None:
    """End a lease: nothing can be claimed or settled under it any more."""
    ended = update(Worker).where(col(Worker.id) == worker_id, col(Worker.alive))
    session.execute(ended.values(alive=False, ended_at=clock.now()))


def slots(session: Session) -> int:
    """How many jobs all live workers together may have in flight."""
    return session.exec(select(func.sum(Worker.slots)).where(col(Worker.alive))).one() or 0


def alive(session: Session) -> dict[str, int]:
    """The beats of every worker that is presumed alive, by id."""
    return dict(session.exec(select(Worker.id, Worker.beats).where(col(Worker.alive))).all())


def served(session: Session) -> set[str]:
    """The models that at least one live worker can serve."""
    lists = session.exec(select(Worker.models).where(col(Worker.alive))).all()
    return {name for models in lists for name in models}


def claim(session: Session, job_id: str, worker_id: str) -> Claim | None:
    """Take a job that may start: one guarded UPDATE. None when there is nothing to take.

    A job that this worker holds already is returned again: its last COMMIT may have gone
    unanswered. The caller knows what it is running.
    """
    live = exists().where(col(Worker.id) == worker_id, col(Worker.alive))
    try:
        job = jobs.move(
            session,
            job_id,
            JobStatus.IN_PROGRESS,
            *jobs.startable(),
            live,
            attempt=col(Job.attempt) + 1,
            worker_id=worker_id,
            started_at=database_now(),
            status_reason=None,
            hinted_at=None,
            run_at=None,
        )
    except IllegalTransition:
        held = session.get(Job, job_id)
        mine = held is not None and (held.status, held.worker_id) == (
            JobStatus.IN_PROGRESS.value,
            worker_id,
        )
        if held is None or not mine:
            return None
        job = held
    else:
        session.add(Attempt(job_id=job_id, number=job.attempt, worker_id=worker_id))
    lease = Lease(job_id, job.attempt, worker_id)
    return Claim(lease, job, jobs.content(session, job_id).request)


def settle(session: Session, lease: Lease, outcome: Outcome) -> Job | None:
    """Write down how an attempt ended, guarded by its lease; None when the lease was lost.

    Idempotent: settling again what this very attempt settled returns the job as it is.
    """
    said = outcome.said
    try:
        job = _move(session, lease, outcome)
    except IllegalTransition:
        if _was_me(session, lease):
            return session.get(Job, lease.job_id, populate_existing=True)
        _note(session, lease, "late", said, None)
        return None
    if job.status in TERMINAL:
        kept = update(JobContent).where(col(JobContent.job_id) == lease.job_id)
        session.execute(
            kept.values(
                response=said.response or None,
                log=streams.pack(said.log),
                log_first_seq=said.first_seq,
            )
        )
    fault = outcome.fault if isinstance(outcome, Failed | Retry) else None
    _note(session, lease, _WORDS[type(outcome)], said, fault)
    return job


_WORDS = {
    Completed: "completed",
    Failed: "failed",
    Cancelled: "cancelled",
    Retry: "retry",
    HandedBack: "handed_back",
}


def _move(session: Session, lease: Lease, outcome: Outcome) -> Job:
    def end(status: JobStatus, **columns: Any) -> Job:
        return jobs.move(session, lease.job_id, status, held=lease, **columns)

    said = outcome.said
    match outcome:
        case Completed():
            return end(JobStatus.COMPLETED, **_progress(said))
        case Failed(fault=fault):
            return end(JobStatus.FAILED, error=asdict(fault), **_progress(said))
        case Cancelled():
            return end(JobStatus.CANCELLED, **_progress(said))
        case Retry(after=after):
            wait = round(after.total_seconds() * 1000)
            again = jobs.requeued("retry_backoff", after_ms=wait)
        case HandedBack():
            again = jobs.requeued("waiting_for_worker") | {"forgiven": col(Job.forgiven) + 1}
    return _queue_again(session, lease, said, again)


def _queue_again(session: Session, lease: Lease, said: Said, columns: dict[str, Any]) -> Job:
    """Put an attempt's job back, unless it was asked to stop: then it has stopped."""
    asked = col(Job.cancel_requested_at).is_not(None)
    try:
        return jobs.move(session, lease.job_id, JobStatus.QUEUED, ~asked, held=lease, **columns)
    except IllegalTransition:
        stopped = JobStatus.CANCELLED
        return jobs.move(session, lease.job_id, stopped, asked, held=lease, **_progress(said))


def _progress(said: Said) -> dict[str, Any]:
    return {
        "usage": said.usage,
        "deltas": said.deltas,
        "characters": said.characters,
        "last_seq": said.first_seq + said.deltas,
        "first_delta_at": said.first_delta_at,
        "provider": said.provider,
        "served_model": said.served_model,
    }


def _was_me(session: Session, lease: Lease) -> bool:
    """Whether this very attempt was settled, by its own worker."""
    tried = session.get(Attempt, (lease.job_id, lease.attempt), populate_existing=True)
    return (
        tried is not None
        and tried.worker_id == lease.worker_id
        and tried.outcome in _WORDS.values()
    )


def _note(session: Session, lease: Lease, word: str, said: Said, fault: Fault | None) -> None:
    """Complete the attempt's row."""
    noted = update(Attempt).where(
        col(Attempt.job_id) == lease.job_id, col(Attempt.number) == lease.attempt
    )
    session.execute(
        noted.values(
            outcome=word,
            ended_at=clock.now(),
            first_delta_at=said.first_delta_at,
            provider=said.provider,
            usage=said.usage,
            error=asdict(fault) if fault else None,
        )
    )


def rescue(session: Session, limit: int) -> list[Job]:
    """Take back the jobs of dead workers: to the queue, or to their end when tries are used up."""
    live = exists().where(col(Worker.id) == col(Job.worker_id), col(Worker.alive))
    orphaned = select(Job).where(col(Job.status) == JobStatus.IN_PROGRESS.value, ~live)
    fault = Fault.of(WorkerLost("The worker was lost with this job in hand."))
    rescued = []
    for job in session.exec(orphaned.limit(limit)).all():
        lease = Lease(job.id, job.attempt, job.worker_id or "")
        try:
            rescued.append(_rescue(session, job, lease, fault))
        except IllegalTransition:
            continue  # its worker settled it since we looked
        _note(session, lease, "lost", Said(), fault)
    return rescued


def _rescue(session: Session, job: Job, lease: Lease, fault: Fault) -> Job:
    if job.cancel_requested_at is not None:
        return jobs.move(session, job.id, JobStatus.CANCELLED, held=lease)
    if job.attempt - job.forgiven >= job.max_attempts:
        return jobs.move(session, job.id, JobStatus.FAILED, held=lease, error=asdict(fault))
    return _queue_again(session, lease, Said(), jobs.requeued("waiting_for_worker"))


def lead(session: Session, role: str, holder: str, seen: tuple[str, int] | None) -> tuple[str, int]:
    """Hold a role, renew it, or take it over from a holder last seen at `seen`.

    Returns who holds it and in which term. The caller passes `seen` only after it has watched
    that holder stand still for a whole lease on its own monotonic clock.
    """
    now = session.get(Leader, role)
    if now is None:
        try:
            with session.begin_nested():
                session.add(Leader(role=role, holder=holder))
        except IntegrityError:  # another was faster
            return lead(session, role, holder, seen)
        return holder, 0
    if now.holder == holder or (now.holder, now.terms) == seen:
        taken = update(Leader).where(
            col(Leader.role) == role,
            col(Leader.holder) == now.holder,
            col(Leader.terms) == now.terms,
        )
        if _rows(session, taken.values(holder=holder, terms=now.terms + 1)):
            return holder, now.terms + 1
    return now.holder, now.terms


def waiting(session: Session, lane: str, *, stale_ms: int | None) -> bool:
    """Whether `unhinted` would find anything; a read, so that an idle sweep writes nothing."""
    return session.exec(_unhinted(lane, stale_ms).limit(1)).first() is not None


def unhinted(session: Session, lane: str, *, stale_ms: int | None, limit: int) -> list[str]:
    """Mark as hinted, and return, jobs that may start and whose hint is missing.

    With `stale_ms`, also those whose hint is older than that and so presumed lost.
    """
    found = _unhinted(lane, stale_ms).order_by(col(Job.id)).limit(limit)
    marked = update(Job).where(col(Job.id).in_(found), *_missing(stale_ms))
    rows = session.execute(
        marked.values(hinted_at=database_now())
        .returning(col(Job.id))
        .execution_options(synchronize_session=False)
    )
    return sorted(rows.scalars())


def _unhinted(lane: str, stale_ms: int | None) -> SelectOfScalar[str]:
    return select(col(Job.id)).where(col(Job.lane) == lane, *_missing(stale_ms))


def _missing(stale_ms: int | None) -> list[ColumnElement[bool]]:
    missing: ColumnElement[bool] = col(Job.hinted_at).is_(None)
    if stale_ms is not None:
        missing = or_(missing, col(Job.hinted_at) < database_now() - stale_ms)
    return [*jobs.startable(), missing]


def running(session: Session, lane: str) -> int:
    """How many jobs of a lane run."""
    found = select(func.count()).where(
        col(Job.status) == JobStatus.IN_PROGRESS.value, col(Job.lane) == lane
    )
    return session.exec(found).one()


def hinted(session: Session, lane: str, limit: int) -> int:
    """How many queued jobs of a lane have a hint out, counted up to `limit`."""
    out = select(col(Job.id)).where(
        col(Job.lane) == lane,
        col(Job.status) == JobStatus.QUEUED.value,
        col(Job.hinted_at).is_not(None),
    )
    return len(session.exec(out.limit(limit)).all())


def forget_hints(session: Session, job_ids: Sequence[str]) -> None:
    """These hints were not sent after all: the sweep will."""
    lost = update(Job).where(col(Job.id).in_(job_ids), col(Job.status) == JobStatus.QUEUED.value)
    session.execute(lost.values(hinted_at=None))


def _rows(session: Session, statement: Any) -> int:
    result: Any = session.execute(statement.execution_options(synchronize_session=False))
    return int(result.rowcount)
