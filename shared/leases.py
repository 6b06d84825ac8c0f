"""Leases: a worker process's right to finish what it claimed. Register, claim, beat, settle.

The protocol is `docs/adr/0001`: the attempt number is the fence, the worker's row is the lease.
"""

import socket
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, exists, func, update
from sqlmodel import Session, col, select

from shared import clock, ids, jobs, moving, remains
from shared.clock import database_now
from shared.errors import Fault, IllegalTransition
from shared.jobs import Lease
from shared.lifecycle import TERMINAL, JobStatus
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Retry, Said
from shared.tables import Attempt, Job, Worker

# Every attempt needs these, and to build them takes longer than to run them.
_NEXT: Final = col(Job.attempt) + 1
_NOW: Final = database_now()
_SLOTS: Final = select(func.sum(Worker.slots)).where(col(Worker.alive))


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


class Held(NamedTuple):
    """A job that a worker holds, as its row says."""

    job_id: str
    attempt: int
    stop: bool
    """It was asked to stop."""


def new_id() -> str:
    """The id of a lease, which no other ever had."""
    return ids.prefixed("wkr_")


def register(
    session: Session, *, pid: int, slots: int, models: Sequence[str], worker_id: str | None = None
) -> str:
    """Enter a worker process; returns the id of its lease. With an id of its own, idempotent."""
    worker_id = worker_id or new_id()
    if session.get(Worker, worker_id) is None:
        host = socket.gethostname()
        worker = Worker(id=worker_id, host=host, pid=pid, slots=slots, models=list(models))
        session.add(worker)
        session.flush()
    return worker_id


def offer(session: Session, worker_id: str, models: Sequence[str]) -> None:
    """Enter which models a worker serves from now on."""
    changed = update(Worker).where(col(Worker.id) == worker_id, col(Worker.alive))
    session.execute(changed.values(models=list(models)))


def succeed(session: Session, former: str, mine: str, finished: Collection[str]) -> list[Job]:
    """Move from a lease that is given up to a new one of the same process; returns what ended.

    Jobs that are `finished` and only wait to be settled come along; the rest are handed back.
    """
    for one in _held(session, former):
        if one.job_id in finished:
            _bring(session, one, former, mine)
    return leave(session, former)


def _bring(session: Session, one: Held, former: str, worker_id: str) -> None:
    ours = update(Job).where(
        col(Job.id) == one.job_id,
        col(Job.attempt) == one.attempt,
        col(Job.worker_id) == former,
        col(Job.status) == JobStatus.IN_PROGRESS.value,
    )
    if _rows(session, ours.values(worker_id=worker_id)):
        tried = session.get_one(Attempt, (one.job_id, one.attempt))
        tried.worker_id = worker_id
        session.flush()


def beat(session: Session, worker_id: str) -> list[Held] | None:
    """Keep the lease; returns all it holds, or None when it is lost."""
    kept = update(Worker).where(col(Worker.id) == worker_id, col(Worker.alive))
    beaten = _rows(session, kept.values(beats=col(Worker.beats) + 1))
    return _held(session, worker_id) if beaten else None


def hand_back(session: Session, worker_id: str, held: Sequence[Held]) -> list[Job]:
    """Let go of jobs without an outcome: they lose no attempt. Returns those that this ended."""
    leases = [Lease(one.job_id, one.attempt, worker_id) for one in held]
    done = [settle(session, lease, HandedBack()) for lease in leases]
    return [job for job in done if job is not None and job.status in TERMINAL]


def leave(session: Session, worker_id: str) -> list[Job]:
    """End a lease in good order, with nothing in its hands; returns what ended. Idempotent."""
    ended = hand_back(session, worker_id, _held(session, worker_id))
    retire(session, worker_id)
    return ended


def _held(session: Session, worker_id: str) -> list[Held]:
    running = select(
        col(Job.id), col(Job.attempt), col(Job.cancel_requested_at).is_not(None)
    ).where(col(Job.worker_id) == worker_id, col(Job.status) == JobStatus.IN_PROGRESS.value)
    # As `jobs.turn` has it: whoever lets go of them may end some.
    in_turn = running.order_by(col(Job.account_id), col(Job.id))
    return [Held(*row) for row in session.exec(in_turn)]


def retire(session: Session, worker_id: str) -> None:
    """End a lease: nothing can be claimed or settled under it any more."""
    ended = update(Worker).where(col(Worker.id) == worker_id, col(Worker.alive))
    session.execute(ended.values(alive=False, ended_at=database_now()))


def slots(session: Session) -> int:
    """How many jobs all live workers together may have in flight."""
    return session.connection().execute(_SLOTS).scalar_one() or 0


def alive(session: Session) -> dict[str, int]:
    """The beats of every worker that is presumed alive, by id."""
    return dict(session.exec(select(Worker.id, Worker.beats).where(col(Worker.alive))).all())


def served(session: Session) -> set[str]:
    """The models that at least one live worker can serve."""
    lists = session.exec(select(Worker.models).where(col(Worker.alive))).all()
    return {name for models in lists for name in models}


def claim(session: Session, job_id: str, worker_id: str) -> Claim | None:
    """Take a job that may start. None when there is nothing to take."""
    return claim_all(session, [(job_id, worker_id)])[0]


def claim_all(session: Session, wanted: Sequence[tuple[str, str]]) -> list[Claim | None]:
    """Take the jobs that may start, each for its worker: one guarded UPDATE a worker.

    A job that its worker holds already is returned again: its last COMMIT may have gone
    unanswered. The caller knows what it is running.
    """
    taken: dict[tuple[str, str], Claim] = {}
    for worker_id in {worker_id for _, worker_id in wanted}:
        ours = [job_id for job_id, worker in wanted if worker == worker_id]
        for claim in _claim(session, ours, worker_id):
            taken[claim.job.id, worker_id] = claim
    return [taken.get(each) for each in wanted]


def _claim(session: Session, job_ids: Sequence[str], worker_id: str) -> list[Claim]:
    begun = moving.begin(
        session,
        job_ids,
        *_claimable(worker_id),
        attempt=_NEXT,
        worker_id=worker_id,
        started_at=_NOW,
        status_reason=None,
        hinted_at=None,
        run_at=None,
    )
    if len(begun) < len(job_ids):
        new = {job.id for job, _ in begun}
        before = _held_by(session, [each for each in job_ids if each not in new], worker_id)
        begun += [(job, None) for job in before]
    return [
        Claim(
            Lease(job.id, job.attempt, worker_id),
            job,
            asked or jobs.content(session, job.id).request,
        )
        for job, asked in begun
    ]


def _held_by(session: Session, job_ids: Sequence[str], worker_id: str) -> list[Job]:
    mine = select(Job).where(
        col(Job.id).in_(job_ids),
        col(Job.status) == JobStatus.IN_PROGRESS.value,
        col(Job.worker_id) == worker_id,
    )
    return list(session.exec(mine))


@lru_cache  # so that the statement with them is built once
def _claimable(worker_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        *jobs.due(),
        col(Job.hinted_at).is_not(None),  # so that whoever lets jobs in keeps the limits
        exists().where(col(Worker.id) == worker_id, col(Worker.alive)),
    )


def settle(session: Session, lease: Lease, outcome: Outcome) -> Job | None:
    """Write down how an attempt ended, guarded by its lease; None when the lease was lost.

    Idempotent: settling again what this very attempt settled returns the job as it is.
    """
    said = outcome.said
    try:
        job = _move(session, lease, outcome)
    except IllegalTransition:
        if _settled(session, lease):
            return session.get(Job, lease.job_id, populate_existing=True)
        note(session, lease, "late", said, None, job=session.get(Job, lease.job_id))
        return None
    if job.status in TERMINAL:
        session.connection().execute(remains.KEEP, remains.kept(lease, said))
    fault = outcome.fault if isinstance(outcome, Failed | Retry) else None
    note(session, lease, _word(outcome), said, fault, job=job)
    return job


def _word(outcome: Outcome) -> str:
    if isinstance(outcome, Retry) and outcome.target is not None:
        return FELL_BACK
    return _WORDS[type(outcome)]


FELL_BACK = "fell_back"
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
            # It was faster than its deadline: the error noted then is void.
            return end(JobStatus.COMPLETED, bill=said.bill, error=None, **remains.progress(said))
        case Failed(fault=fault):
            return end(JobStatus.FAILED, error=asdict(fault), **remains.progress(said))
        case Cancelled():
            return end(JobStatus.CANCELLED, bill=said.bill, **remains.progress(said))
        case Retry(target=int(target)):
            # Its worker goes on at once, which is as good as a hint; what was tried so far was
            # tried elsewhere.
            again = jobs.requeued("waiting_for_worker")
            again |= {
                "target": target,
                "forgiven": col(Job.attempt),
                "hinted_at": database_now(),
            }
        case Retry(after=after):
            again = jobs.requeued("retry_backoff", after_ms=clock.span(after))
        case HandedBack(after=after):
            again = jobs.requeued("waiting_for_worker", after_ms=clock.span(after))
            again["forgiven"] = col(Job.forgiven) + 1
    return _queue_again(session, lease, outcome, again)


def _queue_again(session: Session, lease: Lease, outcome: Outcome, columns: dict[str, Any]) -> Job:
    """Put an attempt's job back, unless it was asked to stop: then it has stopped.

    What was said by an upstream that failed costs nothing.
    """
    said, failed = outcome.said, isinstance(outcome, Retry)
    asked = col(Job.cancel_requested_at).is_not(None)
    try:
        return jobs.move(session, lease.job_id, JobStatus.QUEUED, ~asked, held=lease, **columns)
    except IllegalTransition:
        return jobs.move(
            session,
            lease.job_id,
            JobStatus.CANCELLED,
            asked,
            held=lease,
            bill=None if failed else said.bill,
            **remains.progress(said),
        )


def _settled(session: Session, lease: Lease) -> bool:
    """Whether this very attempt was settled, and not lost."""
    tried = session.get(Attempt, (lease.job_id, lease.attempt), populate_existing=True)
    return tried is not None and tried.outcome in {FELL_BACK, *_WORDS.values()}


def note(
    session: Session,
    lease: Lease,
    word: str,
    said: Said,
    fault: Fault | None,
    *,
    job: Job | None,
) -> None:
    """Complete the attempt's row, at the prices of its job; what was counted (`remains`) stands."""
    noted = remains.tried(lease, word, said, fault, job, clock.now())
    session.connection().execute(remains.NOTE, noted)


def _rows(session: Session, statement: Any) -> int:
    result: Any = session.execute(statement.execution_options(synchronize_session=False))
    return int(result.rowcount)
