"""What each lane does, as the rows tell."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlmodel import col, update

from shared import clock, lanes
from shared.batch_steps import Step
from shared.batches import retry
from shared.clock import database_now
from shared.lifecycle import JobStatus, Lane
from shared.tables import Job
from tests import batches
from tests.factories import Sessions, claimed, ended_at, job_in, ran_for, submitted


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    """An empty database."""
    opened = Sessions(database_url)
    yield opened
    opened.close()


def test_lanes_are_counted_apart(sessions: Sessions) -> None:
    """What waits, what runs, what ended in the last minute, and how long starts took."""
    with sessions() as session:
        for _ in range(3):
            submitted(session)
        submitted(session, lane=Lane.BATCH)
        claimed(session, lane=Lane.BATCH)
        for _ in range(2):
            job_in(session, JobStatus.COMPLETED)
        waited = {"started_at": database_now(), "created_at": database_now() - 5_000}
        ran = col(Job.status) == JobStatus.IN_PROGRESS.value
        session.execute(update(Job).where(ran).values(**waited))

    with sessions() as session:
        depths = lanes.depths(session)
        interactive, batch = lanes.paces(session)

    assert depths == {"interactive": 3, "batch": 1}
    assert (interactive.lane, interactive.running, interactive.drained) == ("interactive", 0, 2)
    assert (batch.lane, batch.running, batch.drained) == ("batch", 1, 0)
    assert len(interactive.waits) == 2
    assert batch.wait(0.5) == batch.wait(0.9) == pytest.approx(5_000, abs=50)


def test_lines_that_are_no_jobs_yet_wait_too(sessions: Sessions) -> None:
    """Those that are not read, and those that are to be tried anew; none of a batch that ended."""
    with sessions() as session:
        batches.accepted(session, lines=4)
        batches.read(session, batches.accepted(session, lines=5), 2)
        again = batches.begun(session, lines=3)
        batches.run(session, again, 1, JobStatus.COMPLETED)
        for number in (2, 3):
            batches.run(session, again, number, JobStatus.FAILED)
        batches.advance(session, again)
        assert again.status == "completed"
        before = lanes.depths(session)
        retry(session, again.account_id, again.id)

        assert before == {"batch": 4 + 5}
        assert lanes.depths(session) == {"batch": 4 + 5 + 2}
        batches.take(session, again, Step.REPLACE)
        assert lanes.depths(session) == {"batch": 4 + 5 + 2}


def test_a_lane_drains_as_fast_as_its_jobs_ran(sessions: Sessions) -> None:
    """From the start of the first; what was cancelled before it ran says nothing."""
    with sessions() as session:
        for _ in range(4):
            ran_for(session, 8_000)
        for _ in range(3):
            ended_at(session, clock.now())

        ended, seconds = lanes.drained(session, Lane.INTERACTIVE)

        assert ended == 4
        assert seconds == pytest.approx(8, abs=2)
        assert lanes.drained(session, Lane.BATCH) == (0, 0)


def test_what_was_long_ago_does_not_count(sessions: Sessions) -> None:
    """Neither an end nor a start of more than a minute ago, nor the start of a second try."""
    with sessions() as session:
        ended_at(session, clock.now() - 61_000)
        claimed(session).job.started_at = clock.now() - 61_000
        claimed(session).job.attempt = 2

    with sessions() as session:
        interactive, _ = lanes.paces(session)

    assert interactive.drained == 0
    assert interactive.wait(0.5) is None


def test_the_looks_are_answered_by_indexes(sessions: Sessions) -> None:
    """No look reads the whole table, however many jobs have ended."""
    with sessions() as session:
        claimed(session)
        plans = []
        explain = "EXPLAIN QUERY PLAN " if sessions.is_sqlite else "EXPLAIN "
        if not sessions.is_sqlite:
            session.execute(text("SET enable_seqscan = off"))
        for condition in (
            "status = 'queued' GROUP BY lane",
            "status = 'in_progress' GROUP BY lane",
            "completed_at > 1 GROUP BY lane, completed_at ORDER BY completed_at DESC LIMIT 9",
        ):
            query = f"SELECT lane, count(*) FROM jobs WHERE {condition}"
            plans.append(str(session.execute(text(explain + query)).all()))

    assert ["ix_jobs_queued" in plans[0], "ix_jobs_running" in plans[1]] == [True, True]
    assert "ix_jobs_ended" in plans[2]
