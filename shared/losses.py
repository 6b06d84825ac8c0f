"""What is lost with a worker: its jobs are rescued, and those it may have died of are set apart.

Nobody can tell which of a dead worker's jobs killed it. So a job whose next loss would be its last
is a suspect, and is convicted only of a death that no other suspect can have caused: ADR 10.
"""

from collections import Counter
from dataclasses import asdict
from typing import NamedTuple

from sqlalchemy import exists, or_, update
from sqlmodel import Session, col, select

from shared import hints, jobs, leases
from shared.clock import database_now
from shared.errors import Fault, WorkerLost
from shared.jobs import Lease
from shared.lifecycle import JobStatus
from shared.outcomes import Said
from shared.tables import Job, Worker

PROBATION_MS = 10_000
"""Milliseconds per loss that a suspect runs unharmed before others are let in beside it."""


def rescue(session: Session, limit: int) -> list[Job]:
    """Take back the jobs of dead workers: to the queue, or to their end when tries are used up."""
    live = exists().where(col(Worker.id) == col(Job.worker_id), col(Worker.alive))
    orphaned = select(Job).where(col(Job.status) == JobStatus.IN_PROGRESS.value, ~live)
    # Suspects first: those of one worker have to be seen together.
    orphaned = orphaned.order_by(hints.suspect().desc(), col(Job.id)).limit(limit)
    lost = session.exec(orphaned).all()
    suspects = Counter(job.worker_id for job in lost if job.losses > 0 and _last_try(job))
    rescued = []
    for seen in sorted(lost, key=jobs.turn):
        lease = Lease(seen.id, seen.attempt, seen.worker_id or "")
        in_company = suspects[seen.worker_id] > 1
        job = _count(session, lease)
        if job is not None:
            rescued.append(_rescue(session, job, lease, in_company))
            leases.note(session, lease, "lost", Said(), _fault(1), job=job)
    return rescued


def _last_try(job: Job) -> bool:
    return job.attempt - job.forgiven >= job.max_attempts


def _fault(losses: int) -> Fault:
    who = "The worker was" if losses == 1 else f"{losses} workers were"
    return Fault.of(WorkerLost(f"{who} lost with this job in hand."))


def _count(session: Session, lease: Lease) -> Job | None:
    """Count the loss; None when its worker has settled the job, or saved it, since we looked."""
    lost = (
        update(Job)
        .where(
            col(Job.id) == lease.job_id,
            col(Job.attempt) == lease.attempt,
            col(Job.worker_id) == lease.worker_id,
            col(Job.status) == JobStatus.IN_PROGRESS.value,
        )
        .values(losses=col(Job.losses) + 1)
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    counted: Job | None = session.execute(lost).scalar_one_or_none()
    return counted


def _rescue(session: Session, job: Job, lease: Lease, in_company: bool) -> Job:
    if job.cancel_requested_at is not None:
        return jobs.move(session, job.id, JobStatus.CANCELLED, held=lease)
    again = jobs.requeued("waiting_for_worker")
    if _last_try(job):
        if job.losses == 1 or not in_company:
            error = asdict(_fault(job.losses))
            return jobs.move(session, job.id, JobStatus.FAILED, held=lease, error=error)
        again["forgiven"] = col(Job.forgiven) + 1
    return jobs.move(session, job.id, JobStatus.QUEUED, held=lease, **again)


class Suspects(NamedTuple):
    """Those that no worker has in hand for good."""

    waiting: list[Job]
    """May start and have no hint out; most losses first."""
    on_probation: bool
    """One was let in, and has not shown yet that it is harmless."""


def suspects(session: Session, *, stale_ms: int, lease_ms: int, limit: int) -> Suspects:
    """Which suspects wait; a hint older than `stale_ms` is presumed lost.

    A death shows only when the lease has run out, `lease_ms` later.
    """
    suspected = [col(Job.losses) > 0, col(Job.completed_at).is_(None), hints.suspect()]
    hinted = col(Job.hinted_at) >= database_now() - stale_ms
    new = col(Job.started_at) > database_now() - lease_ms - PROBATION_MS * col(Job.losses)
    waiting = (
        select(Job)
        .where(*suspected, *jobs.startable(), or_(col(Job.hinted_at).is_(None), ~hinted))
        .order_by(col(Job.losses).desc(), col(Job.id))
        .limit(limit)
    )
    # Apart, so that each is served by the index of its status.
    tried = [
        exists().where(*suspected, col(Job.status) == status.value, not_yet)
        for status, not_yet in ((JobStatus.QUEUED, hinted), (JobStatus.IN_PROGRESS, new))
    ]
    return Suspects(list(session.exec(waiting)), session.exec(select(or_(*tried))).one())
