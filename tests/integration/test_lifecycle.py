"""Any sequence of what may happen to a job leaves it in order."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlmodel import Session, select

from shared import clock, db, jobs, leases
from shared.errors import IllegalTransition
from shared.jobs import Lease
from shared.lifecycle import NEXT, TERMINAL, JobStatus
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Retry
from shared.tables import Job, JobContent
from tests.factories import FAULT, HOUR, SAID, Sessions, submitted, worker

ROWS = ("job_metadata", "job_contents", "attempts", "jobs", "workers")
OUTCOMES: list[Outcome] = [
    Completed(SAID),
    Failed(FAULT, SAID),
    Cancelled(SAID),
    Retry(FAULT, timedelta()),
    Retry(FAULT, timedelta(hours=1)),
    HandedBack(),
]


class Lives(RuleBasedStateMachine):
    """A few jobs, a few workers, and everything that can be done to them."""

    sessions: Sessions

    ids = Bundle("ids")
    workers = Bundle("workers")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, tuple[JobStatus, int]] = {}

    @contextmanager
    def step(self) -> Iterator[Session]:
        """One transaction, and a look at what it has changed."""
        with self.sessions() as session:
            yield session
        with self.sessions() as session:
            for job in session.exec(select(Job)):
                self.look(job)

    def look(self, job: Job) -> None:
        """A status moves along a drawn line or not at all, and the fence only grows."""
        now = JobStatus(job.status), job.attempt
        before = self.seen.get(job.id, (JobStatus.QUEUED, 0))
        assert now[0] == before[0] or now[0] in NEXT[before[0]], (before, now)
        claimed = (before[0], now[0]) == (JobStatus.QUEUED, JobStatus.IN_PROGRESS)
        assert now[1] == before[1] + claimed, (before, now)
        self.seen[job.id] = now

    @initialize()
    def begin(self) -> None:
        """Nothing is there."""
        with self.sessions() as session:
            for table in ROWS:
                session.connection().execute(text(f"DELETE FROM {table}"))

    @rule(target=ids, attempts=st.integers(1, 3), ends=st.booleans())
    def submit(self, attempts: int, ends: bool) -> str:
        with self.step() as session:
            expires_at = clock.now() + HOUR if ends else None
            return submitted(session, max_attempts=attempts, expires_at=expires_at).id

    @rule(target=workers)
    def start(self) -> str:
        with self.step() as session:
            return worker(session)

    @rule(target=held, job_id=ids, worker_id=workers)
    def claim(self, job_id: str, worker_id: str) -> Lease | None:
        with self.step() as session:
            alive = worker_id in leases.alive(session)
            was = session.get_one(Job, job_id).status
            claim = leases.claim(session, job_id, worker_id)
            assert claim is None or alive or was == JobStatus.IN_PROGRESS
            return None if claim is None else claim.lease

    @rule(lease=held, outcome=st.sampled_from(OUTCOMES))
    def settle(self, lease: Lease | None, outcome: Outcome) -> None:
        if lease is not None:
            with self.step() as session:
                leases.settle(session, lease, outcome)

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        with self.step() as session:
            job = session.get_one(Job, job_id)
            asked = jobs.cancel(session, job.account_id, job_id)
            assert asked.status in TERMINAL or asked.cancel_requested_at is not None

    @rule(worker_id=consumes(workers))
    def lose(self, worker_id: str) -> None:
        with self.step() as session:
            leases.retire(session, worker_id)
        with self.step() as session:
            leases.rescue(session, 10)

    @rule()
    def an_hour_passes(self) -> None:
        with self.step() as session:
            for column in ("run_at", "expires_at"):
                session.connection().execute(
                    text(f"UPDATE jobs SET {column} = {column} - {HOUR} WHERE {column} IS NOT NULL")
                )
            jobs.expire(session, 10)

    @rule(job_id=ids, to=st.sampled_from(sorted(TERMINAL)))
    def force(self, job_id: str, to: JobStatus) -> None:
        """What none of the verbs would do is refused, unless it is a drawn line."""
        with self.step() as session:
            try:
                jobs.move(session, job_id, to)
            except IllegalTransition:
                assert to not in NEXT[self.seen[job_id][0]]

    @invariant()
    def rows_are_whole(self) -> None:
        """Ended has a moment, running has a worker, asked to stop does not wait."""
        with self.sessions() as session:
            rows = session.exec(select(Job)).all()
            assert set(session.exec(select(JobContent.job_id))) == {job.id for job in rows}
            for job in rows:
                assert (job.completed_at is not None) == (job.status in TERMINAL)
                assert job.status != JobStatus.IN_PROGRESS or job.worker_id is not None
                assert job.status != JobStatus.QUEUED or job.cancel_requested_at is None
                assert 0 <= job.forgiven <= job.attempt
                tries = jobs.attempts(session, job.id)
                assert [tried.number for tried in tries] == list(range(1, job.attempt + 1))


def test_any_life_of_a_job_is_in_order() -> None:
    """Workers come and go, clients change their minds, answers are late: the rows stay whole."""
    with TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'sluice.db'}"
        db.migrate(url)
        Lives.sessions = Sessions(url)
        try:
            run_state_machine_as_test(
                Lives,
                settings=settings(
                    max_examples=25,
                    stateful_step_count=25,
                    deadline=None,
                    derandomize=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            Lives.sessions.close()
