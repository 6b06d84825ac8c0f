"""Any sequence of what may happen to a job leaves it in order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlmodel import Session, col, select

from shared import clock, deadlines, jobs, leases, losses, retention
from shared.audit import examine
from shared.errors import IllegalTransition
from shared.jobs import Lease
from shared.lifecycle import NEXT, TERMINAL, JobStatus
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Retry
from shared.tables import Job
from tests.factories import FAULT, HOUR, Sessions, abandon, spoken, submitted, worker

ROWS = ("job_metadata", "job_contents", "attempts", "jobs", "workers")
OUTCOMES: dict[str, Callable[[Job], Outcome]] = {
    "completed": lambda job: Completed(spoken(job)),
    "failed": lambda job: Failed(FAULT, spoken(job, "Half")),
    "failed at once": lambda _: Failed(FAULT),
    "cancelled": lambda job: Cancelled(spoken(job, "Half")),
    "retried": lambda _: Retry(FAULT, timedelta()),
    "retried later": lambda _: Retry(FAULT, timedelta(hours=1)),
    "fell back": lambda job: Retry(FAULT, timedelta(), target=job.target + 1),
    "handed back": lambda _: HandedBack(),
}
BLUE = {"team": "blue"}
MAY_CHANGE = {"job_metadata", "fingerprint", "content_deleted_at"}
"""Columns of a job that has ended."""


def outcome(job: Job, word: str) -> Outcome:
    """How an attempt ends; without tries left nothing is retried, as `workers.retry` decides."""
    if word.startswith("retried") and job.attempt - job.forgiven >= job.max_attempts:
        word = "failed"
    return OUTCOMES[word](job)


def some(session: Session, status: JobStatus) -> Job | None:
    """The oldest job in this status."""
    return session.exec(select(Job).where(Job.status == status).order_by(col(Job.id))).first()


class Lives(RuleBasedStateMachine):
    """A few jobs, a few workers, and everything that can be done to them."""

    sessions: Sessions

    ids = Bundle("ids")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, Any]] = {}
        with self.sessions() as session:
            for table in ROWS:
                session.connection().execute(text(f"DELETE FROM {table}"))

    @contextmanager
    def step(self) -> Iterator[Session]:
        """One transaction, and a look at what it has changed."""
        with self.sessions() as session:
            yield session
        with self.sessions() as session:
            for job in session.exec(select(Job)):
                self.look(job.model_dump())

    def look(self, now: dict[str, Any]) -> None:
        """A status moves along a drawn line, the fence only grows, and an end is for good."""
        before = self.seen.get(now["id"], {"status": JobStatus.QUEUED, "attempt": 0})
        old, new = JobStatus(before["status"]), JobStatus(now["status"])
        assert new == old or new in NEXT[old], (before, now)
        claimed = (old, new) == (JobStatus.QUEUED, JobStatus.IN_PROGRESS)
        assert now["attempt"] == before["attempt"] + claimed, (before, now)
        if old in TERMINAL:
            assert {name for name in now if now[name] != before[name]} <= MAY_CHANGE
        self.seen[now["id"]] = now

    @initialize(target=ids)
    def wait(self) -> Any:
        with self.step() as session:
            return multiple(*(submitted(session, max_attempts=number).id for number in (2, 3)))

    @rule(
        target=ids,
        attempts=st.integers(1, 3),
        fields=st.sampled_from([{}, {"expires_at": 0}, {"stop_after": HOUR}, {"attended_for": 0}]),
    )
    def submit(self, attempts: int, fields: dict[str, int]) -> str:
        if "expires_at" in fields:
            fields = {"expires_at": clock.now() + HOUR}
        with self.step() as session:
            return submitted(session, max_attempts=attempts, metadata=BLUE, **fields).id

    @rule(target=held)
    def claim(self) -> Any:
        """By a worker that lives, which may hold others already."""
        with self.step() as session:
            job = some(session, JobStatus.QUEUED)
            if job is None:
                return multiple()
            alive = sorted(leases.alive(session))
            worker_id = alive[0] if len(alive) > 1 else worker(session)
            claim = leases.claim(session, job.id, worker_id)
            return multiple() if claim is None else claim.lease

    @rule(job_id=ids, lease=held)
    def claim_again(self, job_id: str, lease: Lease) -> None:
        """A hint that came twice, or to a worker that is gone, or whose claim went unanswered."""
        with self.step() as session:
            alive = lease.worker_id in leases.alive(session)
            before = self.seen[job_id]
            holds = (JobStatus.IN_PROGRESS, lease.worker_id)
            mine = (before["status"], before["worker_id"]) == holds
            claim = leases.claim(session, job_id, lease.worker_id)
            assert claim is None or mine or (alive and before["status"] == JobStatus.QUEUED)

    @rule(word=st.sampled_from(sorted(OUTCOMES)))
    def settle(self, word: str) -> None:
        with self.step() as session:
            job = some(session, JobStatus.IN_PROGRESS)
            if job is not None and job.worker_id is not None:
                lease = Lease(job.id, job.attempt, job.worker_id)
                assert leases.settle(session, lease, outcome(job, word)) is not None

    @rule(lease=held, word=st.sampled_from(sorted(OUTCOMES)))
    def settle_whenever(self, lease: Lease, word: str) -> None:
        """In time, late or once more: the bundle keeps every lease there ever was."""
        with self.step() as session:
            job = session.get(Job, lease.job_id)
            if job is not None:
                leases.settle(session, lease, outcome(job, word))
            else:
                assert leases.settle(session, lease, HandedBack()) is None

    @rule(status=st.sampled_from([JobStatus.QUEUED, JobStatus.IN_PROGRESS]))
    def cancel(self, status: JobStatus) -> None:
        with self.step() as session:
            job = some(session, status)
            if job is not None:
                asked = jobs.cancel(session, job.account_id, job.id)
                assert asked.status in TERMINAL or asked.cancel_requested_at is not None

    @rule(noticed=st.booleans())
    def lose(self, noticed: bool) -> None:
        """A busy worker is presumed dead, and may still say something."""
        with self.step() as session:
            job = some(session, JobStatus.IN_PROGRESS)
            if job is not None and job.worker_id is not None:
                leases.retire(session, job.worker_id)
                assert leases.beat(session, job.worker_id) is None
        if noticed:
            with self.step() as session:
                losses.rescue(session, 10)

    @rule(word=st.sampled_from(sorted(OUTCOMES)))
    def come_back(self, word: str) -> None:
        """A worker that was presumed dead speaks after its successor has begun."""
        with self.step() as session:
            job = some(session, JobStatus.IN_PROGRESS)
            if job is None or job.worker_id is None or job.cancel_requested_at is not None:
                return
            former = Lease(job.id, job.attempt, job.worker_id)
            leases.retire(session, former.worker_id)
        with self.step() as session:
            losses.rescue(session, 10)
        with self.step() as session:
            leases.claim(session, former.job_id, worker(session))
        with self.step() as session:
            job = session.get_one(Job, former.job_id)
            assert leases.settle(session, former, outcome(job, word)) is None

    @rule()
    def leave(self) -> None:
        """A worker goes in good order."""
        with self.step() as session:
            for worker_id in sorted(leases.alive(session))[:1]:
                leases.leave(session, worker_id)

    @rule()
    def an_hour_passes(self) -> None:
        hour = HOUR + 1_000  # a little more than what was due in an hour
        with self.sessions() as session:
            for column in ("run_at", "expires_at", "stop_at", "attended_until"):
                due = f"{column} IS NOT NULL AND completed_at IS NULL"
                session.connection().execute(
                    text(f"UPDATE jobs SET {column} = {column} - {hour} WHERE {due}")
                )
        for sweep in (deadlines.expire, deadlines.overdue, abandon):
            with self.step() as session:
                sweep(session, 10)

    @rule(clean_up=st.sampled_from([retention.prune, retention.anonymise]))
    def clean_up(self, clean_up: Callable[[Session, int, int], object]) -> None:
        with self.step() as session:
            clean_up(session, -HOUR, 1)

    @rule(job_id=ids, to=st.sampled_from(sorted(JobStatus)))
    def meddle(self, job_id: str, to: JobStatus) -> None:
        """What is no drawn line is refused, whoever tries; labels and the bin are for all."""
        with self.step() as session:
            job = session.get(Job, job_id)
            if job is None:
                return
            if to not in NEXT[JobStatus(job.status)]:
                with pytest.raises(IllegalTransition):
                    jobs.move(session, job_id, to)
            if job.content_deleted_at is None:
                jobs.set_metadata(session, job.account_id, job_id, {"team": to})
            elif to == JobStatus.FAILED:
                jobs.remove(session, job.account_id, job_id)

    @invariant()
    def everything_is_in_order(self) -> None:
        """So the audit says."""
        report = examine(self.sessions.engine)
        assert not report.broken, report.flaws


def test_any_life_of_a_job_is_in_order(sessions: Sessions) -> None:
    """Workers come and go, clients change their minds, answers are late: the rows stay whole."""
    Lives.sessions = sessions
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=20 if sessions.is_sqlite else 6,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # a failure is told at once, not made small for minutes
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
