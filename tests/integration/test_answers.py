"""What those who wait for jobs are given, on both databases."""

import pytest

from shared import answers, ids, jobs
from shared.answers import Kept
from shared.errors import NotFound
from shared.ledger import grant
from shared.lifecycle import JobStatus
from shared.tables import Account
from tests.factories import Sessions, claimed, job_in, submitted


def test_those_who_wait_see_their_jobs_as_they_are(sessions: Sessions) -> None:
    """In the order in which they ask, twice if need be, and whoever's they are."""
    with sessions() as session:
        ended = job_in(session, JobStatus.COMPLETED)
        runs, waits = claimed(session).job, submitted(session, account="theirs")
        grant(session, waits.account_id, 7, note="for tests")
        ours = session.get_one(Account, ended.account_id).credits
        response = jobs.content(session, ended.id).response
    asked = [waits.id, ended.id, runs.id, waits.id]

    with sessions() as session:
        seen = answers.look_all(session, asked)

    assert [each.job.id for each in seen] == asked
    assert [each.job.status for each in seen] == ["queued", "completed", "in_progress", "queued"]
    assert [each.kept for each in seen] == [
        Kept(None, 7), Kept(response, ours), Kept(None, ours), Kept(None, 7)
    ]  # fmt: skip
    assert response


def test_a_job_whose_content_is_gone_is_seen_without(sessions: Sessions) -> None:
    """One that was deleted is not seen at all."""
    with sessions() as session:
        job = job_in(session, JobStatus.COMPLETED)
    with sessions() as session:
        session.delete(jobs.content(session, job.id))
    with sessions() as session:
        [seen] = answers.look_all(session, [job.id])
        assert (seen.job.id, seen.kept) == (job.id, None)
        jobs.remove(session, job.account_id, job.id)

    with sessions() as session, pytest.raises(NotFound):
        answers.look_all(session, [job.id, ids.new_id()])
