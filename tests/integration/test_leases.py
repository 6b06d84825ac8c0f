"""Leases on a real database: claim, settle, rescue, hints and leadership, alone and in races."""

import re
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import text
from sqlmodel import Session

from shared import clock, feeding, hints, jobs, leadership, leases, losses, streams
from shared.jobs import Lease
from shared.lifecycle import JobStatus, Lane
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Retry
from shared.tables import Attempt, Job, Leader
from tests.factories import (
    BODY,
    FAULT,
    HOUR,
    SAID,
    Sessions,
    claimed,
    job_in,
    submitted,
    taken,
    waiting,
    worker,
)
from tests.plans import explained, recorded

OUTCOMES: dict[str, Outcome] = {
    "completed": Completed(SAID),
    "failed": Failed(FAULT, SAID),
    "cancelled": Cancelled(SAID),
    "retry": Retry(FAULT, timedelta(hours=1), SAID),
    "fell_back": Retry(FAULT, timedelta(), SAID, target=1),
    "handed_back": HandedBack(SAID),
}


def attempt_of(session: Session, lease: Lease) -> Attempt:
    """The attempt's row as it is now."""
    row = session.get_one(Attempt, (lease.job_id, lease.attempt))
    session.refresh(row)
    return row


def test_a_claim_is_the_only_read_an_attempt_needs(sessions: Sessions) -> None:
    """It returns the request, and the attempt that fences everything after."""
    with sessions() as session:
        job_id, worker_id = submitted(session).id, worker(session)

    with sessions() as session:
        claim = leases.claim(session, job_id, worker_id)

    assert claim is not None
    assert claim.lease == Lease(job_id, 1, worker_id)
    assert (claim.request, claim.tries) == (BODY, 1)
    assert (claim.job.status, claim.job.hinted_at) == ("in_progress", None)
    assert claim.job.started_at is not None


def test_of_two_workers_one_gets_the_job(sessions: Sessions) -> None:
    """A hint that came twice costs nothing."""
    for _ in range(10):
        with sessions() as session:
            job_id, one, other = submitted(session).id, worker(session), worker(session)

        claims = sessions.at_once(
            partial(leases.claim, job_id=job_id, worker_id=one),
            partial(leases.claim, job_id=job_id, worker_id=other),
        )

        [claim] = [claim for claim in claims if claim is not None]
        with sessions() as session:
            job = session.get_one(Job, job_id)
            assert (job.attempt, job.worker_id) == (1, claim.lease.worker_id)
            assert len(jobs.attempts(session, job_id)) == 1


def test_a_claim_may_be_repeated(sessions: Sessions) -> None:
    """The answer to its COMMIT may have been lost: the same attempt comes back."""
    with sessions() as session:
        claim = claimed(session)

    with sessions() as session:
        again = leases.claim(session, claim.job.id, claim.lease.worker_id)

    assert again is not None
    assert (again.lease, again.request) == (claim.lease, claim.request)


def test_many_are_claimed_at_once(sessions: Sessions) -> None:
    """Each by the worker that asks for it; one that may not start is left, one in hand is found."""
    with sessions() as session:
        first, second = worker(session), worker(session)
        mine, theirs, held = (submitted(session, body=b"%d" % n).id for n in range(3))
        waits = submitted(session, hinted=False).id
        leases.claim(session, held, first)
        wanted = [(mine, first), (waits, first), (theirs, second), (held, first), (held, second)]
        claims = leases.claim_all(session, wanted)

        found = [claim and (claim.lease, claim.request) for claim in claims]
        assert found == [
            (Lease(mine, 1, first), b"0"),
            None,
            (Lease(theirs, 1, second), b"1"),
            (Lease(held, 1, first), b"2"),
            None,
        ]
        assert [attempt_of(session, claim.lease).worker_id for claim in claims if claim] == [
            *(first, second, first)
        ]


def test_what_is_claimed_is_found_by_its_id(sessions: Sessions) -> None:
    """The index of all that are queued has those that were, too, until PostgreSQL forgets them."""
    with sessions() as session:
        ours = worker(session)
        wanted = [(submitted(session).id, ours) for _ in range(3)]
    with sessions() as session, recorded(sessions.engine) as statements:
        leases.claim_all(session, wanted)

    plan = explained(sessions, *statements[0])
    assert "ix_jobs_" not in plan
    assert re.search("jobs_pkey|autoindex_jobs_1", plan)


def test_a_job_that_may_not_start_is_not_claimed(sessions: Sessions) -> None:
    """Before its time, past its deadline, ended, unknown, or held by another."""
    with sessions() as session:
        mine = worker(session)
        for job_id in (
            submitted(session, run_at=clock.now() + HOUR).id,
            submitted(session, expires_at=clock.now() - 1).id,
            job_in(session, JobStatus.CANCELLED).id,
            job_in(session, JobStatus.IN_PROGRESS).id,
            "0" * 26,
        ):
            assert leases.claim(session, job_id, mine) is None

        due = submitted(session, run_at=clock.now() - 1_000, expires_at=clock.now() + HOUR).id
        assert leases.claim(session, due, mine) is None  # not before it was let in
        assert taken(session, due, mine) is not None


def test_a_dead_worker_claims_nothing(sessions: Sessions) -> None:
    """Nor does one that never was."""
    with sessions() as session:
        job_id, dead = submitted(session).id, worker(session)
        leases.retire(session, dead)

        assert leases.claim(session, job_id, dead) is None
        assert leases.claim(session, job_id, "wkr_nobody") is None
        assert session.get_one(Job, job_id).attempt == 0


@pytest.mark.parametrize("word", OUTCOMES)
def test_an_outcome_is_written_down(sessions: Sessions, word: str) -> None:
    """In the job, in its contents when it has ended, and in the attempt."""
    outcome = OUTCOMES[word]
    with sessions() as session:
        lease = claimed(session).lease
    with sessions() as session:
        job = leases.settle(session, lease, outcome)

    with sessions() as session:
        assert job == session.get_one(Job, lease.job_id)
        kept, tried = jobs.content(session, lease.job_id), attempt_of(session, lease)
    assert job is not None
    assert (tried.outcome, tried.usage) == (word, SAID.usage)
    assert (tried.model, tried.upstream_status) == (SAID.model, SAID.upstream_status)
    assert tried.ended_at is not None
    assert tried.first_delta_at == SAID.first_delta_at
    if word in ("retry", "fell_back", "handed_back"):
        assert (job.status, job.worker_id, job.completed_at) == ("queued", None, None)
        assert kept.response is kept.log is None
    else:
        assert job.status == word
        assert (job.usage, job.deltas, job.characters) == (SAID.usage, 2, 9)
        assert kept.response == SAID.response
        assert kept.log is not None
        assert (streams.unpack(kept.log), kept.log_first_seq) == (SAID.log.split(b"\n"), 3)
    failed = word in ("failed", "retry", "fell_back")
    assert (tried.error is not None and tried.error["code"] == FAULT.code) == failed


@pytest.mark.parametrize("word", OUTCOMES)
def test_an_outcome_may_be_settled_again(sessions: Sessions, word: str) -> None:
    """The answer to its COMMIT may have been lost: nothing changes, and it is not called late."""
    with sessions() as session:
        lease = claimed(session).lease
        leases.settle(session, lease, OUTCOMES[word])
    with sessions() as session:
        before = session.get_one(Job, lease.job_id).model_dump()

    with sessions() as session:
        again = leases.settle(session, lease, OUTCOMES[word])

        assert again is not None
        assert again.model_dump() == before
        assert attempt_of(session, lease).outcome == word


@pytest.mark.parametrize("word", OUTCOMES)
def test_a_lost_lease_cannot_finish_the_job(sessions: Sessions, word: str) -> None:
    """A worker that was presumed dead may not overwrite its successor's work."""
    with sessions() as session:
        lost = claimed(session).lease
        leases.retire(session, lost.worker_id)
        losses.rescue(session, 10)
        held = taken(session, lost.job_id, worker(session))
        assert held is not None
        before = session.get_one(Job, lost.job_id, populate_existing=True).model_dump()

    with sessions() as session:
        assert leases.settle(session, lost, OUTCOMES[word]) is None
    with sessions() as session:
        assert session.get_one(Job, lost.job_id).model_dump() == before
        assert jobs.content(session, lost.job_id).response is None
        assert attempt_of(session, lost).outcome == "late"
        assert leases.settle(session, held.lease, Completed(SAID)) is not None


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("word", OUTCOMES)
def test_a_lost_lease_cannot_end_a_job_that_waits(
    sessions: Sessions, word: str, asked: bool
) -> None:
    """Its number is still the last one given, but nobody holds the job any more."""
    with sessions() as session:
        lost = claimed(session).lease
        leases.retire(session, lost.worker_id)
        losses.rescue(session, 10)
        if asked:
            session.get_one(Job, lost.job_id).cancel_requested_at = 1
    with sessions() as session:
        assert leases.settle(session, lost, OUTCOMES[word]) is None
    with sessions() as session:
        job = session.get_one(Job, lost.job_id)

        assert (job.status, job.losses, job.forgiven) == ("queued", 1, 0)
        assert attempt_of(session, lost).outcome == "late"


def test_handing_back_costs_no_attempt(sessions: Sessions) -> None:
    """However often workers come and go; a loss afterwards still counts as the first."""
    with sessions() as session:
        mine = worker(session)
        job_id = submitted(session, max_attempts=1).id
        for number in range(1, 4):
            claim = taken(session, job_id, mine)
            assert claim is not None
            assert (claim.lease.attempt, claim.tries) == (number, 1)
            job = leases.settle(session, claim.lease, HandedBack())
            assert job is not None
            assert job.status_reason == "waiting_for_worker"

        assert taken(session, job_id, mine) is not None
        leases.retire(session, mine)
        [lost] = losses.rescue(session, 10)
        assert (lost.status, lost.attempt, lost.forgiven) == ("failed", 4, 3)


def test_a_retry_waits_its_time(sessions: Sessions) -> None:
    """Nobody may claim it, and it gets no hint, until it is due."""
    with sessions() as session:
        lease = claimed(session).lease
        job = leases.settle(session, lease, Retry(FAULT, timedelta(hours=1)))
        assert job is not None
        assert (job.status, job.status_reason) == ("queued", "retry_backoff")
        other = worker(session)

        assert taken(session, lease.job_id, other) is None
        assert feeding.due(session, 1) == waiting(session, most=1) == []
        session.connection().execute(text("UPDATE jobs SET run_at = run_at - 3600001"))
        assert feeding.due(session, 1) == [lease.job_id]
        feeding.come(session, [lease.job_id])
        assert waiting(session, most=1) == [lease.job_id]
        again = taken(session, lease.job_id, other)

    assert again is not None
    assert (again.lease.attempt, again.tries) == (2, 2)
    assert (again.job.run_at, again.job.status_reason) == (None, None)


def test_each_retry_waits_its_own_time(sessions: Sessions) -> None:
    """The statement that moves jobs is kept; what it reckons with is each job's own."""
    with sessions() as session:
        due = []
        for hours in (1, 2):
            again = Retry(FAULT, timedelta(hours=hours))
            job = leases.settle(session, claimed(session).lease, again)
            assert job is not None
            assert job.run_at is not None
            due.append(job.run_at)

    assert due[1] - due[0] >= HOUR


@pytest.mark.parametrize("word", ["retry", "handed_back"])
def test_a_job_that_was_asked_to_stop_does_not_start_again(sessions: Sessions, word: str) -> None:
    """Its attempt failed, or its worker left, before it had heard of it."""
    with sessions() as session:
        claim = claimed(session)
        jobs.cancel(session, claim.job.account_id, claim.job.id)

        job = leases.settle(session, claim.lease, OUTCOMES[word])

        assert job is not None
        assert job.status == "cancelled"


def test_the_jobs_of_a_dead_worker_are_taken_back(sessions: Sessions) -> None:
    """They wait again, wanting a hint; those of the living stay where they are."""
    with sessions() as session:
        dead, living = worker(session), worker(session)
        lost, kept = claimed(session, by=dead), claimed(session, by=living)
        leases.retire(session, dead)

    with sessions() as session:
        [job] = losses.rescue(session, 10)

        assert (job.id, job.status, job.worker_id) == (lost.job.id, "queued", None)
        assert (job.attempt, job.forgiven, job.hinted_at) == (1, 0, None)
        assert attempt_of(session, lost.lease).outcome == "lost"
        assert attempt_of(session, kept.lease).outcome is None
        assert losses.rescue(session, 10) == []


def test_a_job_that_loses_every_worker_fails(sessions: Sessions) -> None:
    """After so many attempts it may be the job that kills them."""
    with sessions() as session:
        job_id = submitted(session, max_attempts=2).id
        for number in (1, 2):
            mine = worker(session)
            claim = taken(session, job_id, mine)
            assert claim is not None
            assert claim.tries == number
            leases.retire(session, mine)
            [job] = losses.rescue(session, 10)

    assert (job.status, job.attempt) == ("failed", 2)
    assert job.error is not None
    assert (job.error["code"], job.error["status"]) == ("worker_lost", 502)


def test_a_lost_job_that_was_asked_to_stop_has_stopped(sessions: Sessions) -> None:
    """There is nobody left to hear of it."""
    with sessions() as session:
        claim = claimed(session)
        jobs.cancel(session, claim.job.account_id, claim.job.id)
        leases.retire(session, claim.lease.worker_id)

        [job] = losses.rescue(session, 10)

    assert job.status == "cancelled"


def test_rescue_and_settle_may_race(sessions: Sessions) -> None:
    """Either the work counts, or it is late: never both, never neither."""
    for _ in range(10):
        with sessions() as session:
            lease = claimed(session).lease
            leases.retire(session, lease.worker_id)

        settled, rescued = sessions.at_once(
            partial(leases.settle, lease=lease, outcome=Completed(SAID)),
            partial(losses.rescue, limit=10),
        )

        assert (settled is None) == bool(rescued)
        with sessions() as session:
            job, tried = session.get_one(Job, lease.job_id), attempt_of(session, lease)
            expected = ("queued", "late") if rescued else ("completed", "completed")
            assert (job.status, tried.outcome) == expected
            session.delete(job)


def test_a_lease_lives_by_its_beats(sessions: Sessions) -> None:
    """They grow while it is alive; once it is not, it never is again."""
    with sessions() as session:
        mine, other = worker(session, "a", "b"), worker(session, "b", "c")
        assert leases.beat(session, mine) == []
        assert leases.alive(session) == {mine: 1, other: 0}
        assert leases.served(session) == {"a", "b", "c"}

        leases.retire(session, mine)
        assert leases.beat(session, mine) is None
        assert leases.beat(session, "wkr_nobody") is None
        assert leases.alive(session) == {other: 0}
        assert leases.served(session) == {"b", "c"}


def test_a_beat_tells_all_that_the_lease_holds(sessions: Sessions) -> None:
    """And what of it was asked to stop; so a worker learns of a job it does not know of."""
    with sessions() as session:
        mine = worker(session)
        held = [claimed(session, by=mine).job for _ in range(2)]
        claimed(session)
        jobs.cancel(session, held[0].account_id, held[0].id)
        told = leases.beat(session, mine)

    assert told is not None
    assert sorted(told) == [(held[0].id, 1, True), (held[1].id, 1, False)]


def test_a_worker_that_leaves_hands_everything_back(sessions: Sessions) -> None:
    """Its lease has ended, and no attempt is lost; what was asked to stop has stopped."""
    with sessions() as session:
        mine = worker(session)
        held, stopping = claimed(session, by=mine), claimed(session, by=mine)
        jobs.cancel(session, stopping.job.account_id, stopping.job.id)
        for _ in range(2):
            leases.leave(session, mine)

    with sessions() as session:
        job = session.get_one(Job, held.job.id)
        assert (job.status, job.attempt, job.forgiven, job.losses) == ("queued", 1, 1, 0)
        assert session.get_one(Job, stopping.job.id).status == "cancelled"
        assert attempt_of(session, held.lease).outcome == "handed_back"
        assert leases.alive(session) == {}
        assert losses.rescue(session, 10) == []


def test_what_is_finished_comes_along_to_a_new_lease(sessions: Sessions) -> None:
    """The rest is handed back; a settle that was on its way under the old lease still counts."""
    with sessions() as session:
        former, new = worker(session), worker(session)
        finished, cut = claimed(session, by=former), claimed(session, by=former)
        for _ in range(2):
            leases.succeed(session, former, new, [finished.job.id])

    with sessions() as session:
        assert leases.beat(session, new) == [(finished.job.id, 1, False)]
        assert attempt_of(session, finished.lease).worker_id == new
        assert attempt_of(session, cut.lease).outcome == "handed_back"
        assert leases.beat(session, former) is None
        settled = leases.settle(session, finished.lease, Completed(SAID))
        assert settled is not None
        assert settled.status == "completed"


def test_what_was_given_away_does_not_come_along(sessions: Sessions) -> None:
    """The lease was lost in earnest: another worker has the job by now."""
    with sessions() as session:
        former = worker(session)
        lost = claimed(session, by=former)
        leases.retire(session, former)
        losses.rescue(session, 10)
        held = taken(session, lost.job.id, worker(session))
        assert held is not None
        leases.succeed(session, former, worker(session), [lost.job.id])

    with sessions() as session:
        assert session.get_one(Job, lost.job.id).worker_id == held.lease.worker_id
        assert leases.settle(session, lost.lease, Completed(SAID)) is None


def test_a_registration_may_be_repeated(sessions: Sessions) -> None:
    """The answer to its COMMIT may have been lost."""
    for _ in range(2):
        with sessions() as session:
            leases.register(session, pid=1, slots=1, models=[], worker_id="wkr_me")

    with sessions() as session:
        assert leases.alive(session) == {"wkr_me": 0}


def test_the_sweep_finds_what_has_no_hint(sessions: Sessions) -> None:
    """Of its lane and due; what it found it marks, so that it finds it once."""
    with sessions() as session:
        bare = sorted(submitted(session, hinted=False).id for _ in range(3))
        submitted(session)
        submitted(session, lane=Lane.BATCH, hinted=False)
        submitted(session, hinted=False, run_at=clock.now() + HOUR)
        submitted(session, hinted=False, expires_at=clock.now() - 1)
        claimed(session)

    with sessions() as session:
        assert waiting(session, most=10) == bare
        assert waiting(session, most=2) == bare[:2]
        assert hints.mark(session, bare[:2], after_ms=HOUR) == bare[:2]
        assert waiting(session, most=10) == bare[2:]
        assert hints.mark(session, bare, after_ms=HOUR) == bare[2:]
        assert waiting(session, most=10) == []
        assert hints.out(session, "interactive", 10) == 4
        assert hints.out(session, "interactive", 3) == 3


def test_the_sweep_repeats_hints_that_were_lost(sessions: Sessions) -> None:
    """By their age on the database's clock, or when they are known not to have been sent."""
    with sessions() as session:
        job_id = submitted(session).id
        age = text(f"UPDATE jobs SET hinted_at = hinted_at - {2 * HOUR}")

        assert hints.stale(session, "interactive", after_ms=HOUR, limit=10) == []
        session.connection().execute(age)
        assert hints.stale(session, "interactive", after_ms=HOUR, limit=10) == [job_id]
        assert hints.mark(session, [job_id], after_ms=HOUR) == [job_id]
        assert hints.stale(session, "interactive", after_ms=HOUR, limit=10) == []

        hints.forget(session, [job_id])
        assert waiting(session, most=10) == [job_id]


def test_two_sweeps_at_once_hint_each_job_once(sessions: Sessions) -> None:
    """Two leaders for a moment do no harm."""
    with sessions() as session:
        made = sorted(submitted(session, hinted=False).id for _ in range(20))

    found = sessions.at_once(*[partial(hints.mark, job_ids=made, after_ms=HOUR)] * 2)

    assert sorted(found[0] + found[1]) == made


def test_one_process_leads(sessions: Sessions) -> None:
    """The first to ask; it renews, and its term grows with every time."""
    with sessions() as session:
        assert leadership.lead(session, "control", "a", None) == ("a", 0)
        assert leadership.lead(session, "control", "b", None) == ("a", 0)
        assert leadership.lead(session, "control", "a", None) == ("a", 1)
        assert leadership.lead(session, "other", "b", None) == ("b", 0)


def test_leadership_is_taken_only_from_one_that_stands_still(sessions: Sessions) -> None:
    """Whoever takes over names the term it has watched: a term that moved on is alive."""
    with sessions() as session:
        leadership.lead(session, "control", "a", None)
        leadership.lead(session, "control", "a", None)

        assert leadership.lead(session, "control", "b", ("a", 0)) == ("a", 1)
        assert leadership.lead(session, "control", "b", ("a", 1)) == ("b", 2)
        assert leadership.lead(session, "control", "a", None) == ("b", 2)


def test_an_election_whose_answer_was_lost_is_asked_again(sessions: Sessions) -> None:
    """In the same words, the term that it has ended included; it had been elected."""
    with sessions() as session:
        leadership.lead(session, "control", "a", None)
        assert leadership.lead(session, "control", "b", ("a", 0)) == ("b", 1)

        assert leadership.lead(session, "control", "b", ("a", 0)) == ("b", 2)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_leader_that_is_overtaken_as_it_renews_is_told(sessions: Sessions) -> None:
    """The answer is what came of it, not what was so when it began to ask."""
    with sessions() as session:
        leadership.lead(session, "control", "a", None)
    with sessions() as slow, sessions() as quick:
        seen = slow.get_one(Leader, "control")
        assert (seen.holder, seen.terms) == ("a", 0)
        assert leadership.lead(quick, "control", "b", ("a", 0)) == ("b", 1)
        quick.commit()

        assert leadership.lead(slow, "control", "a", None) == ("b", 1)


def test_a_leader_that_resigns_is_replaced_at_once(sessions: Sessions) -> None:
    """Nobody has to watch it stand still; only the leader itself can resign."""
    with sessions() as session:
        leadership.lead(session, "control", "a", None)
        leadership.resign(session, "control", "b")
        assert leadership.lead(session, "control", "b", None) == ("a", 0)

        leadership.resign(session, "control", "a")
        assert leadership.lead(session, "control", "b", None) == ("b", 0)


def test_of_two_that_would_lead_one_does(sessions: Sessions) -> None:
    """When nobody leads yet, and when both saw the same leader stand still."""
    for role in map(str, range(5)):
        first = sessions.at_once(
            partial(leadership.lead, role=role, holder="a", seen=None),
            partial(leadership.lead, role=role, holder="b", seen=None),
        )
        assert first[0] == first[1]

        second = sessions.at_once(
            partial(leadership.lead, role=role, holder="c", seen=first[0]),
            partial(leadership.lead, role=role, holder="d", seen=first[0]),
        )
        leading = [me for me, (holder, _) in zip("cd", second, strict=True) if holder == me]
        assert len(leading) == 1
