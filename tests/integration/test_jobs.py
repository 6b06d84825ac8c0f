"""Jobs on a real database: submitted, found, moved, cancelled, abandoned, expired."""

from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest
from sqlalchemy import func, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from shared import clock, deadlines, ids, jobs, leases, rows
from shared.errors import IllegalTransition, InvalidRequest, NotFound
from shared.lifecycle import NEXT, TERMINAL, JobStatus
from shared.outcomes import Completed, Retry
from shared.rows import MANY
from shared.tables import Attempt, Job, JobContent, JobMetadata
from tests.factories import (
    FAULT,
    HOUR,
    SAID,
    Sessions,
    abandon,
    claimed,
    job_in,
    submission,
    submitted,
)

TABLES = (Job, JobContent, JobMetadata, Attempt)


def count(session: Session, table: type) -> int:
    """Rows of a table."""
    return session.exec(select(func.count()).select_from(table)).one()


def test_a_submitted_job_waits_with_its_request(sessions: Sessions) -> None:
    """It is there for the next transaction, whoever asks."""
    with sessions() as session:
        job = submitted(session, body=b'{"a":1}', metadata={"k": "v"})

    with sessions() as session:
        found = jobs.find(session, job.account_id, job.id)
        assert (found.status, found.attempt, found.completed_at) == ("queued", 0, None)
        assert found.job_metadata == {"k": "v"}
        assert jobs.content(session, job.id).request == b'{"a":1}'


@pytest.mark.parametrize("many", [1, MANY], ids=["few", "many"])
def test_of_many_jobs_all_are_accepted_or_none(sessions: Sessions, many: int) -> None:
    """The last of them cannot be inserted, so the first is not there."""
    with sessions() as session:
        taken = submitted(session).id

    new = [*(ids.new_id() for _ in range(many)), taken]
    with pytest.raises(IntegrityError), sessions() as session:
        jobs.submit_all(session, [submission(session, job_id=each) for each in new])
    with sessions() as session:
        assert [count(session, table) for table in (Job, JobContent)] == [1, 1]


def test_many_jobs_are_kept_as_one_is(sessions: Sessions) -> None:
    """Every column, whatever way the row came in; and what is returned looks like it."""
    awkward = "a\tb\\N\n\u20ac"
    asked: dict[str, Any] = {
        "metadata": {awkward: awkward},
        "webhook": {"url": awkward},
        "body": awkward.encode() + b"\0\xff",
    }
    with sessions() as session:
        one = shown(submitted(session, **asked))
        new = [submission(session, **asked) for _ in range(MANY)]
        seen = jobs.submit_all(session, new)

    with sessions() as session:
        for job in seen:
            kept = shown(session.get_one(Job, job.id))
            assert kept == shown(job)
            assert kept == one | {name: kept[name] for name in ("id", "created_at", "hinted_at")}
            assert jobs.content(session, job.id).request == asked["body"]
            assert session.get_one(JobMetadata, (job.id, awkward)).value == awkward


def shown(job: Job) -> dict[str, Any]:
    """All columns of a job's row."""
    return {name: getattr(job, name) for name in rows.names(Job)}


@pytest.mark.parametrize("prefix", ["job_", "chatcmpl-", "batch_req_", ""])
def test_a_job_is_found_by_each_of_its_ids(sessions: Sessions, prefix: str) -> None:
    """For its own account; for any other there is no such job."""
    with sessions() as session:
        job, other = submitted(session), submitted(session, account="theirs")

        assert jobs.find(session, job.account_id, prefix + job.id) is job
        with pytest.raises(NotFound):
            jobs.find(session, other.account_id, prefix + job.id)


def test_a_status_changes_only_along_the_drawn_lines(sessions: Sessions) -> None:
    """Every pair of statuses is tried; what is refused leaves the row as it was."""
    for before, after in product(JobStatus, JobStatus):
        with sessions() as session:
            job = job_in(session, before)
            session.refresh(job)
        row = job.model_dump()
        columns: dict[str, Any] = {"worker_id": "wkr_1"} if after == JobStatus.IN_PROGRESS else {}

        with sessions() as session:
            if after in NEXT[before]:
                assert jobs.move(session, job.id, after, **columns).status == after
            else:
                with pytest.raises(IllegalTransition):
                    jobs.move(session, job.id, after, **columns)
        with sessions() as session:
            now = session.get_one(Job, job.id)
            assert (now.status == after) == (after in NEXT[before] or before == after)
            assert (now.completed_at is not None) == (now.status in TERMINAL)
            assert after in NEXT[before] or now.model_dump() == row


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_the_database_itself_keeps_how_a_job_ended(sessions: Sessions, status: JobStatus) -> None:
    """Not even plain SQL reopens it, or moves its fence."""
    with sessions() as session:
        job = job_in(session, status)

    for change in (
        "status = 'queued', completed_at = NULL",
        "status = 'in_progress', completed_at = NULL, worker_id = 'wkr_1'",
        "status = 'completed'" if status != "completed" else "status = 'failed'",
        "attempt = attempt + 1",
        "completed_at = NULL",
        "usage = NULL",
        "error = NULL",
        "worker_id = 'wkr_1'",
    ):
        with pytest.raises(IntegrityError), sessions() as session:
            session.connection().execute(text(f"UPDATE jobs SET {change}"))
    with sessions() as session:
        assert session.get_one(Job, job.id) == job


@pytest.mark.parametrize("change", ["response", "log", "request"])
def test_the_database_itself_keeps_what_was_said(sessions: Sessions, change: str) -> None:
    """A late writer cannot replace a result, whatever the code above says."""
    with sessions() as session:
        job = job_in(session, JobStatus.COMPLETED)
        kept = jobs.content(session, job.id)

    with pytest.raises(IntegrityError), sessions() as session:
        session.connection().execute(text(f"UPDATE job_contents SET {change} = request"))
    with sessions() as session:
        assert jobs.content(session, job.id) == kept


@pytest.mark.parametrize(
    "change", ["status = 'in_progress'", "status = 'completed'", "completed_at = 1"]
)
def test_the_database_itself_keeps_rows_whole(sessions: Sessions, change: str) -> None:
    """A running job has its worker, and a moment of ending is there when it has ended."""
    with sessions() as session:
        submitted(session)

    with pytest.raises(IntegrityError), sessions() as session:
        session.connection().execute(text(f"UPDATE jobs SET {change}"))


def test_a_waiting_job_is_cancelled_at_once(sessions: Sessions) -> None:
    """And cancelling it again changes nothing."""
    with sessions() as session:
        job = submitted(session)
        first = jobs.cancel(session, job.account_id, job.id).model_dump()
        again = jobs.cancel(session, job.account_id, job.id).model_dump()

    assert first["status"] == "cancelled"
    assert first == again


def test_a_running_job_is_asked_to_stop(sessions: Sessions) -> None:
    """Its worker hears of it with the next beat; the first moment of asking is kept."""
    with sessions() as session:
        claim = claimed(session)
        account_id, job_id = claim.job.account_id, claim.job.id
        asked_at = jobs.cancel(session, account_id, job_id).cancel_requested_at

        assert leases.beat(session, claim.lease.worker_id) == [(job_id, 1, True)]
        again = jobs.cancel(session, account_id, job_id)
        assert (again.status, again.cancel_requested_at) == ("in_progress", asked_at)
        assert asked_at is not None


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_an_ended_job_cannot_be_cancelled(sessions: Sessions, status: JobStatus) -> None:
    """It stays as it is, and nobody is told off."""
    with sessions() as session:
        job = job_in(session, status)
        before = job.model_dump()

        assert jobs.cancel(session, job.account_id, job.id).model_dump() == before


def test_cancel_and_finish_may_race(sessions: Sessions) -> None:
    """Whoever comes first, the answer that was given is kept and the job has ended once."""
    for _ in range(10):
        with sessions() as session:
            claim = claimed(session)
        account_id, job_id = claim.job.account_id, claim.job.id

        asked, settled = sessions.at_once(
            partial(jobs.cancel, account_id=account_id, shown_id=job_id),
            partial(leases.settle, lease=claim.lease, outcome=Completed(SAID)),
        )

        assert settled is not None
        assert settled.status == "completed"
        assert asked is not None
        assert asked.status in ("in_progress", "completed")
        with sessions() as session:
            assert jobs.content(session, job_id).response == SAID.response


def test_a_cancel_is_never_lost_to_a_retry(sessions: Sessions) -> None:
    """A job that goes back to the queue while it is being cancelled does not start again."""
    for _ in range(10):
        with sessions() as session:
            claim = claimed(session)
        account_id, job_id = claim.job.account_id, claim.job.id

        sessions.at_once(
            partial(jobs.cancel, account_id=account_id, shown_id=job_id),
            partial(leases.settle, lease=claim.lease, outcome=Retry(FAULT, timedelta())),
        )

        with sessions() as session:
            assert session.get_one(Job, job_id).status == "cancelled"


def test_a_job_nobody_reads_is_stopped(sessions: Sessions) -> None:
    """A waiting one ends, a running one is asked to, once; others are left alone."""
    with sessions() as session:
        waiting = submitted(session, attended_for=-1).id
        running = claimed(session, attended_for=-1).job.id
        submitted(session, attended_for=HOUR)
        submitted(session)
        job_in(session, JobStatus.COMPLETED, attended_for=-1)

    with sessions() as session:
        stopped = {job.id: job for job in abandon(session, 10)}

        assert set(stopped) == {waiting, running}
        assert stopped[waiting].status == "cancelled"
        assert stopped[running].cancel_requested_at is not None
        assert abandon(session, 10) == []


def test_a_reader_keeps_a_job_alive(sessions: Sessions) -> None:
    """Its moment moves on; that of a job that lives by itself stays empty."""
    with sessions() as session:
        read, unread = submitted(session, attended_for=-1), submitted(session)

        jobs.attend(session, [read.id, unread.id], HOUR)

        assert abandon(session, 10) == []
        session.refresh(unread)
        assert unread.attended_until is None


def test_a_job_expires_when_it_did_not_start_in_time(sessions: Sessions) -> None:
    """Only one that still waits, and whose deadline has passed."""
    late = clock.now() - 1
    with sessions() as session:
        overdue = submitted(session, expires_at=late, run_at=clock.now() + HOUR).id
        submitted(session, expires_at=clock.now() + HOUR)
        submitted(session)
        job_in(session, JobStatus.CANCELLED)

    with sessions() as session:
        [expired] = deadlines.expire(session, 10)

        assert (expired.id, expired.status) == (overdue, "expired")
        assert expired.error is not None
        assert expired.error["code"] == "job_expired"
        assert deadlines.expire(session, 10) == []


def test_metadata_can_be_replaced_at_any_time(sessions: Sessions) -> None:
    """Also of a job that has ended; the pairs by which it is found follow."""
    with sessions() as session:
        job = job_in(session, JobStatus.COMPLETED, metadata={"a": "1", "b": "2"})

        jobs.set_metadata(session, job.account_id, job.id, {"b": "3"})
        assert [(row.key, row.value) for row in session.exec(select(JobMetadata))] == [("b", "3")]
        jobs.set_metadata(session, job.account_id, job.id, None)
        assert count(session, JobMetadata) == 0
        assert session.get_one(Job, job.id).job_metadata is None


@pytest.mark.parametrize("status", JobStatus)
def test_only_an_ended_job_is_deleted(sessions: Sessions, status: JobStatus) -> None:
    """With everything that was asked and said."""
    with sessions() as session:
        job = job_in(session, status, metadata={"a": "1"})

    if status in TERMINAL:
        with sessions() as session:
            jobs.remove(session, job.account_id, job.id)
        with sessions() as session:
            assert [count(session, table) for table in TABLES] == [0, 0, 0, 0]
    else:
        with sessions() as session, pytest.raises(InvalidRequest, match="cancel it"):
            jobs.remove(session, job.account_id, job.id)
