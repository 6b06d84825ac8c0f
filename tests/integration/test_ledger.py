"""Credits on a real database: holds, charges and releases, once each, in races too."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import Session, col, func, select

from shared import (
    accounts,
    clock,
    db,
    deadlines,
    ids,
    jobs,
    leases,
    ledger,
    losses,
    remains,
    statements,
)
from shared.errors import InsufficientCredits
from shared.jobs import Lease
from shared.leases import Claim
from shared.lifecycle import JobStatus
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Retry, Said
from shared.prices import NANO
from shared.statements import Loss
from shared.tables import Account, Job, LedgerEntry
from tests.factories import FAULT, Sessions, abandon, submission, taken, worker
from tests.stack import eventually

PRICES = {"test": ["1000", "1000", "1000", "2000"]}
"""1,000 nano-credits a token in, 2,000 out."""
HOLD = 1_000_000
USAGE = {"prompt_tokens": 100, "completion_tokens": 50}
COST = 200_000
SAID = Said(response=b'{"choices":[]}', usage=USAGE, model="test")


def funded(session: Session, nano: int = 10 * HOLD) -> str:
    """An account with so much to spend."""
    account = accounts.ensure(session, "ours")
    ledger.grant(session, account.id, nano, note="test")
    return account.id


def priced(session: Session, /, **fields: Any) -> Job:
    """A queued job that may cost a million nano-credits."""
    return jobs.submit(session, submission(session, hold=HOLD, prices=PRICES, **fields))


def balance(session: Session, account_id: str) -> tuple[int, int]:
    """What can be spent and what is set aside, once they agree with the ledger."""
    account = session.get_one(Account, account_id, populate_existing=True)
    entries = dict(
        session.exec(
            select(LedgerEntry.kind, func.sum(LedgerEntry.credits))
            .where(col(LedgerEntry.account_id) == account_id)
            .group_by(col(LedgerEntry.kind))
        ).all()
    )
    assert account.credits == sum(entries.values())
    assert account.held == -(entries.get("hold", 0) + entries.get("release", 0))
    return account.credits, account.held


def test_a_job_sets_aside_the_most_it_may_cost(sessions: Sessions) -> None:
    """It can no longer be spent, but it is not gone."""
    with sessions() as session:
        account_id = funded(session)
        priced(session)

        assert balance(session, account_id) == (9 * HOLD, HOLD)


@pytest.mark.parametrize(
    "outcome, cost",
    [
        (Completed(SAID), COST),
        (Cancelled(SAID), COST),
        (Failed(FAULT, SAID), 0),
    ],
    ids=["completed", "cancelled", "failed"],
)
def test_the_end_charges_what_was_used(
    sessions: Sessions, outcome: Completed | Cancelled | Failed, cost: int
) -> None:
    """And releases the rest; a failure of the upstream's costs nothing. Once, however often."""
    with sessions() as session:
        account_id = funded(session)
        job_id = priced(session).id
        claim = leases.claim(session, job_id, worker(session))
        assert claim is not None
    for _ in range(3):
        with sessions() as session:
            assert leases.settle(session, claim.lease, outcome) is not None

    with sessions() as session:
        assert balance(session, account_id) == (10 * HOLD - cost, 0)
        assert session.get_one(Job, job_id).cost == cost


def test_what_never_ran_costs_nothing(sessions: Sessions) -> None:
    """Cancelled in the queue, expired, stopped at its deadline."""
    with sessions() as session:
        account_id = funded(session)
        jobs.cancel(session, account_id, priced(session).id)
        expired = priced(session, expires_at=1)
        stopped = priced(session, stop_after=-1000)
        deadlines.expire(session, 10)
        deadlines.overdue(session, 10)

        ends = {
            session.get_one(Job, job.id, populate_existing=True).status
            for job in (expired, stopped)
        }
        assert ends == {JobStatus.EXPIRED}
        assert balance(session, account_id) == (10 * HOLD, 0)


def test_a_job_that_waits_again_keeps_its_hold(sessions: Sessions) -> None:
    """Handed back, lost and late: money moves once, with the attempt that ends the job."""
    with sessions() as session:
        account_id = funded(session)
        job_id = priced(session).id
        first = leases.claim(session, job_id, worker(session))
        assert first is not None
        leases.settle(session, first.lease, HandedBack(SAID))
        lost = taken(session, job_id, worker(session))
        assert lost is not None
        leases.retire(session, lost.lease.worker_id)
        losses.rescue(session, 10)
        assert balance(session, account_id) == (9 * HOLD, HOLD)

        last = taken(session, job_id, worker(session))
        assert last is not None
        assert leases.settle(session, lost.lease, Completed(SAID)) is None
        leases.settle(session, last.lease, Completed(SAID))
        assert balance(session, account_id) == (10 * HOLD - COST, 0)


def test_a_failure_that_a_cancel_overtakes_costs_nothing(sessions: Sessions) -> None:
    """What the upstream failed to say is not billed because somebody had asked to stop."""
    with sessions() as session:
        account_id = funded(session)
        job = priced(session)
        claim = leases.claim(session, job.id, worker(session))
        assert claim is not None
        jobs.cancel(session, account_id, job.id)
        leases.settle(session, claim.lease, Retry(FAULT, timedelta(), SAID))

        ended = session.get_one(Job, job.id, populate_existing=True)
        assert (ended.status, ended.cost) == (JobStatus.CANCELLED, 0)
        assert balance(session, account_id) == (10 * HOLD, 0)


def test_more_than_was_held_is_charged_as_far_as_it_goes(sessions: Sessions) -> None:
    """An upstream that says more than it should never takes a balance below zero."""
    much = Said(usage={"prompt_tokens": 0, "completion_tokens": HOLD}, model="test")
    with sessions() as session:
        account_id = funded(session, HOLD + 500)
        job_id = priced(session).id
        claim = leases.claim(session, job_id, worker(session))
        assert claim is not None
        leases.settle(session, claim.lease, Completed(much))

        assert balance(session, account_id) == (0, 0)
        job = session.get_one(Job, job_id)
        assert (job.cost, job.unpaid) == (HOLD + 500, 2000 * HOLD - HOLD - 500)
        assert ledger.held(session).unpaid == job.unpaid
        assert statements.losses(session, since=0) == [
            Loss("test", "unpaid", times=1, credits=job.unpaid or 0)
        ]


def test_what_attempts_cost_that_nobody_paid_for(sessions: Sessions) -> None:
    """Their upstreams counted, whatever became of them; what was estimated cost nobody anything."""
    guessed = replace(SAID, usage_estimated=True)
    with sessions() as session:
        funded(session, 1000 * HOLD)
        for outcome in (
            Retry(FAULT, timedelta(0), SAID),
            Failed(FAULT, SAID),
            Failed(FAULT, guessed),
            Cancelled(guessed),
            Completed(SAID),
        ):
            claim = _claimed(session)
            leases.settle(session, claim.lease, outcome)
        drained = Said(usage={"prompt_tokens": 100, "completion_tokens": 80}, model="test")
        claim = _claimed(session)
        leases.settle(session, claim.lease, Cancelled(guessed))
        remains.counted(session, claim.lease, drained)
        jobs.cancel(session, claim.job.account_id, session.exec(_WAITS).one())

        found = statements.losses(session, since=0)

        assert sorted(found) == [
            Loss("test", "cancelled", 1, 30 * 2000),
            Loss("test", "failed", 1, COST),
            Loss("test", "retry", 1, COST),
        ]
        [tried] = jobs.attempts(session, claim.job.id)
        assert tried.cost == COST + 30 * 2000
        assert statements.losses(session, since=clock.now() + 3_600_000) == []


_WAITS = select(Job.id).where(col(Job.status) == JobStatus.QUEUED.value)


def _claimed(session: Session) -> Claim:
    """A priced job in the hands of a worker."""
    claim = leases.claim(session, priced(session).id, worker(session))
    assert claim is not None
    return claim


def test_refused_with_what_is_missing(sessions: Sessions) -> None:
    """What is needed, what is there, and whether waiting may help."""
    with sessions() as session:
        account_id = funded(session, HOLD + 1)
        priced(session)
    with pytest.raises(InsufficientCredits) as held, sessions() as session:
        priced(session)
    with pytest.raises(InsufficientCredits) as short, sessions() as session:
        jobs.submit(session, submission(session, hold=HOLD * 2, prices=PRICES))

    assert (held.value.status, held.value.code) == (402, "credits_held")
    assert held.value.retry_after is not None
    assert short.value.code == "insufficient_credits"
    assert short.value.details == {
        "required": 2 * HOLD / NANO,
        "available": 1 / NANO,
        "held": HOLD / NANO,
    }
    with sessions() as session:
        assert balance(session, account_id) == (1, HOLD)


def test_only_what_can_be_paid_is_accepted(sessions: Sessions) -> None:
    """Twenty at once with room for ten: ten, exactly."""
    with sessions() as session:
        account_id = funded(session, 10 * HOLD)

    def submit(session: Session) -> bool:
        try:
            priced(session)
        except InsufficientCredits:
            session.rollback()
            return False
        return True

    accepted = sum(sum(sessions.at_once(*[submit] * 5)) for _ in range(4))

    with sessions() as session:
        assert accepted == 10
        assert balance(session, account_id) == (0, 10 * HOLD)


def test_settles_at_once_charge_once(sessions: Sessions) -> None:
    """Whoever wins moves the money; the others change nothing."""
    with sessions() as session:
        account_id = funded(session)
        job_id = priced(session).id
        claim = leases.claim(session, job_id, worker(session))
        assert claim is not None
        lease: Lease = claim.lease

    def settle(session: Session) -> bool:
        return leases.settle(session, lease, Completed(SAID)) is not None

    sessions.at_once(settle, settle, settle)

    with sessions() as session:
        assert balance(session, account_id) == (10 * HOLD - COST, 0)


async def test_processes_never_wait_for_each_other_crosswise(
    database_url: str, sessions: Sessions
) -> None:
    """Whatever the order in which their callers come: every group takes its accounts in order."""
    if sessions.is_sqlite:
        pytest.skip("its writers follow one another")
    with sessions() as session:
        payers = [accounts.ensure(session, f"payer {number}").id for number in range(12)]
        for payer in payers:
            ledger.grant(session, payer, 100 * HOLD, note="test")

    def pay(session: Session, payer: str) -> None:
        ledger.hold(session, payer, {ids.new_id(): HOLD})

    processes = [db.Transactions(db.connect(database_url)) for _ in range(3)]
    for turn in range(5):
        order = payers[turn:] + payers[:turn]
        await asyncio.gather(
            *(
                process.by(payer, pay, payer)
                for process, payers_of in zip(
                    processes, (order, order[::-1], order[::2] + order[1::2]), strict=True
                )
                for payer in payers_of
            )
        )
    for process in processes:
        process.close()

    with sessions() as session:
        deadlocks = "SELECT sum(deadlocks) FROM pg_stat_database WHERE datname = current_database()"
        assert session.connection().execute(text(deadlocks)).scalar_one() == 0
        for payer in payers:
            assert balance(session, payer) == (85 * HOLD, 15 * HOLD)


ENDS: dict[str, tuple[dict[str, Any], Callable[[Session], object]]] = {
    "expire": ({"expires_at": 1}, partial(deadlines.expire, limit=10)),
    "overdue": ({"stop_after": -1000}, partial(deadlines.overdue, limit=10)),
    "abandoned": ({"attended_for": -1000}, partial(abandon, limit=10)),
}


@pytest.mark.parametrize("end", ENDS)
def test_whoever_ends_the_jobs_of_many_takes_their_accounts_in_order(
    sessions: Sessions, end: str
) -> None:
    """A group of callers that has one account, and wants the next, does not meet it crosswise."""
    if sessions.is_sqlite:
        pytest.skip("its writers follow one another")
    fields, step = ENDS[end]
    with sessions() as session:
        payers = [accounts.ensure(session, name).id for name in ("first", "second")]
        for payer in payers:
            ledger.grant(session, payer, 10 * HOLD, note="test")
        for name in ("second", "first"):
            priced(session, account=name, **fields)

    with ThreadPoolExecutor(1) as threads:
        with sessions() as session:
            ledger.hold(session, payers[0], {ids.new_id(): HOLD})

            def ended() -> None:
                with sessions() as ending:
                    step(ending)

            ending = threads.submit(ended)
            eventually(lambda: somebody_waits(sessions))
            ledger.hold(session, payers[1], {ids.new_id(): HOLD})
        ending.result(10)

    with sessions() as session:
        assert [balance(session, payer) for payer in payers] == [(9 * HOLD, HOLD)] * 2


def somebody_waits(sessions: Sessions) -> bool:
    """Whether a transaction waits for what another one holds."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with sessions() as session:
        return bool(session.connection().execute(text(waiting)).scalar_one())
