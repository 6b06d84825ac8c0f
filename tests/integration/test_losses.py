"""Jobs of lost workers on a real database: who is a suspect, who is let in, who is convicted."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import Session

from shared import db, hints, jobs, leases, losses
from shared.lifecycle import Lane
from shared.outcomes import Completed, HandedBack
from shared.tables import Job
from tests.factories import SAID, Sessions, submitted, taken, worker
from tests.factories import waiting as queued
from workers.probation import Probation

STALE = 60_000
"""Milliseconds after which a hint is presumed lost."""
LEASE = 60_000


def lose(session: Session, *job_ids: str) -> dict[str, Job]:
    """One worker takes these jobs and dies; they as they are then."""
    mine = worker(session)
    for job_id in job_ids:
        assert taken(session, job_id, mine) is not None
    leases.retire(session, mine)
    return {job.id: job for job in losses.rescue(session, 10)}


def suspects(session: Session, count: int, **fields: Any) -> list[str]:
    """Jobs that were lost once and have one more try."""
    job_ids = [submitted(session, max_attempts=2, **fields).id for _ in range(count)]
    lose(session, *job_ids)
    return sorted(job_ids)


def waiting(session: Session) -> list[str]:
    """The suspects that would be let in next."""
    return [
        job.id for job in losses.suspects(session, stale_ms=STALE, lease_ms=LEASE, limit=10).waiting
    ]


def on_probation(session: Session) -> bool:
    """Whether one has yet to show that it is harmless."""
    return losses.suspects(session, stale_ms=STALE, lease_ms=LEASE, limit=10).on_probation


def test_a_suspect_that_was_alone_is_convicted(sessions: Sessions) -> None:
    """With the number of workers it has cost; its neighbours above suspicion go on."""
    with sessions() as session:
        job_id = submitted(session).id
        for number in (1, 2, 3):
            neighbour = submitted(session).id
            lost = lose(session, job_id, neighbour)
            assert (lost[job_id].losses, lost[job_id].forgiven) == (number, 0)
            assert (lost[neighbour].status, lost[neighbour].losses) == ("queued", 1)

        convicted = lost[job_id]
        assert convicted.status == "failed"
        assert convicted.error is not None
        assert convicted.error["code"] == "worker_lost"
        assert convicted.error["message"] == "3 workers were lost with this job in hand."
        assert [each.outcome for each in jobs.attempts(session, job_id)] == ["lost"] * 3


def test_suspects_that_were_lost_together_are_forgiven(sessions: Sessions) -> None:
    """Any of them may have done it; the loss is counted, the attempt is not."""
    with sessions() as session:
        pair = suspects(session, 2)
        lost = lose(session, *pair)

        for job_id in pair:
            job = lost[job_id]
            assert (job.status, job.losses, job.forgiven) == ("queued", 2, 1)
        alone = lose(session, pair[0])[pair[0]]
        assert (alone.status, alone.losses) == ("failed", 3)


def test_a_job_with_a_single_try_fails_at_its_first_loss(sessions: Sessions) -> None:
    """Whoever asked for one attempt gets one, in whatever company."""
    with sessions() as session:
        pair = [submitted(session, max_attempts=1).id for _ in range(2)]
        lost = lose(session, *pair)

        assert {job.status for job in lost.values()} == {"failed"}


def test_suspects_wait_for_their_own_turn(sessions: Sessions) -> None:
    """Feeder and sweep leave them alone; those with the most losses come first."""
    with sessions() as session:
        pair = suspects(session, 2)
        [other] = suspects(session, 1)
        lose(session, *pair)

        assert waiting(session) == [*pair, other]
        for lane in Lane:
            assert queued(session, lane) == []
            assert hints.stale(session, lane.value, after_ms=0, limit=10) == []


def test_a_suspect_that_was_handed_back_is_one_still(sessions: Sessions) -> None:
    """Its worker left in good order, which proves nothing."""
    with sessions() as session:
        [job_id] = suspects(session, 1)
        claim = taken(session, job_id, worker(session))
        assert claim is not None
        leases.settle(session, claim.lease, HandedBack())

        assert waiting(session) == [job_id]


def test_probation_lasts_as_long_as_its_losses_ask_for(sessions: Sessions) -> None:
    """From the hint on, and for a lease and ten seconds of work a loss, by the database's clock."""
    with sessions() as session:
        [job_id] = suspects(session, 1)
        assert not on_probation(session)

        hints.mark(session, [job_id], after_ms=STALE)
        assert on_probation(session)
        assert waiting(session) == []

        leases.claim(session, job_id, worker(session))
        assert on_probation(session)
        session.connection().execute(text("UPDATE jobs SET started_at = started_at - 69000"))
        assert on_probation(session)
        session.connection().execute(text("UPDATE jobs SET started_at = started_at - 1001"))
        assert not on_probation(session)


def test_a_suspect_whose_hint_was_lost_waits_again(sessions: Sessions) -> None:
    """Otherwise it would be on probation for ever."""
    with sessions() as session:
        [job_id] = suspects(session, 1)
        hints.mark(session, [job_id], after_ms=STALE)
        session.connection().execute(text(f"UPDATE jobs SET hinted_at = hinted_at - {STALE + 1}"))

        assert not on_probation(session)
        assert waiting(session) == [job_id]


@pytest.fixture
async def tx(sessions: Sessions) -> AsyncIterator[db.Transactions]:
    """The same database, as the control loops use it."""
    opened = db.Transactions(sessions.engine)
    yield opened
    opened.close()


async def test_a_group_that_does_no_harm_lets_in_twice_as_many(
    sessions: Sessions, tx: db.Transactions
) -> None:
    """One, two, four; as many when they wait again; and one when a worker was lost."""
    let_in: list[str] = []

    async def hint(_: Lane, job_ids: Sequence[str]) -> None:
        let_in.extend(await tx(hints.mark, job_ids, after_ms=STALE))

    async def turn() -> list[str]:
        let_in.clear()
        await probation.turn()
        return list(let_in)

    def survive(job_ids: list[str]) -> None:
        with sessions() as session:
            for job_id in job_ids:
                claim = leases.claim(session, job_id, worker(session))
                assert claim is not None
                leases.settle(session, claim.lease, Completed(SAID))

    with sessions() as session:
        many = suspects(session, 12)
    probation = Probation(tx, hint, stale_ms=STALE, lease_ms=LEASE)

    assert await turn() == many[:1]
    assert await turn() == []
    survive(many[:1])
    assert await turn() == many[1:3]
    await tx(hints.forget, many[1:3])
    assert await turn() == many[1:3]
    survive(many[1:3])
    assert await turn() == many[3:7]
    survive(many[3:6])
    with sessions() as session:
        assert lose(session, many[6])[many[6]].status == "failed"
    probation.a_worker_was_lost()
    assert await turn() == many[7:8]
