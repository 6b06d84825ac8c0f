"""What a key may spend by itself: counted with the holds, reset by the period, exact in races."""

from datetime import UTC, datetime

import pytest
from sqlmodel import Session, col, select

from shared import accounts, allowances, completing, jobs, keys, leases, ledger
from shared.completing import Done
from shared.errors import KeyLimitReached
from shared.lifecycle import JobStatus
from shared.outcomes import Completed, Said
from shared.prices import NANO
from shared.tables import ApiKey, Job, LedgerEntry
from tests.factories import Sessions, submission, worker

HOLD = 1_000_000
COST = 200_000
PRICES = {"test": ["1000", "1000", "1000", "2000"]}
SAID = Said(usage={"prompt_tokens": 100, "completion_tokens": 50}, model="test")


def allowed(session: Session, nano: int | None, period: str | None = None) -> str:
    """A key that may spend so much, of an account that could spend far more."""
    key, _ = keys.create(session, account="ours")
    ledger.grant(session, accounts.ensure(session, "ours").id, 100 * HOLD, note="test")
    key.credit_limit, key.credit_period = nano, period
    session.flush()
    return key.id


def priced(session: Session, key_id: str) -> Job:
    """A queued job of that key that may cost a million nano-credits."""
    return jobs.submit(session, submission(session, hold=HOLD, prices=PRICES, key_id=key_id))


def spent(session: Session, key_id: str) -> int:
    """What counts against the key's allowance."""
    return session.get_one(ApiKey, key_id, populate_existing=True).spent


def test_a_key_spends_no_more_than_it_may(sessions: Sessions) -> None:
    """What is held counts, and only what was charged goes on counting."""
    with sessions() as session:
        key_id = allowed(session, HOLD + COST)
        first = priced(session, key_id)
        claim = leases.claim(session, first.id, worker(session))
        assert claim is not None
    with pytest.raises(KeyLimitReached) as refused, sessions() as session:
        priced(session, key_id)
    assert refused.value.status == 402
    assert refused.value.details == {
        "required": HOLD / NANO,
        "available": COST / NANO,
        "resets_at": None,
    }

    with sessions() as session:
        leases.settle(session, claim.lease, Completed(SAID))
        assert spent(session, key_id) == COST
        priced(session, key_id)
        assert spent(session, key_id) == HOLD + COST


@pytest.mark.parametrize("limits", [[HOLD], [HOLD, None], [None, HOLD], [HOLD, HOLD]])
def test_jobs_that_end_together_give_back_to_their_keys(
    sessions: Sessions, limits: list[int | None]
) -> None:
    """To each that has an allowance what its own job did not take."""
    with sessions() as session:
        key_ids = [allowed(session, limit) for limit in limits]
        wanted = [(priced(session, key_id).id, worker(session)) for key_id in key_ids]
        claims = [claim for claim in leases.claim_all(session, wanted) if claim is not None]
        done = [Done(claim.lease, Completed(SAID), claim.job) for claim in claims]
        ended = completing.settle(session, done)
        assert [one and one.status for one in ended] == [JobStatus.COMPLETED] * len(limits)

        counted = [spent(session, key_id) for key_id in key_ids]
        assert counted == [0 if limit is None else COST for limit in limits]


def test_races_for_an_allowance_have_as_many_winners_as_it_has_room_for(sessions: Sessions) -> None:
    """Ten at once with room for three."""
    with sessions() as session:
        key_id = allowed(session, 3 * HOLD)

    def submit(session: Session) -> bool:
        try:
            priced(session, key_id)
        except KeyLimitReached:
            session.rollback()
            return False
        return True

    assert sum(sum(sessions.at_once(*[submit] * 5)) for _ in range(2)) == 3
    with sessions() as session:
        assert spent(session, key_id) == 3 * HOLD


def test_a_successor_inherits_what_was_spent_and_not_what_is_held(sessions: Sessions) -> None:
    """For a hold is given back to the key it was held by."""
    with sessions() as session:
        key_id = allowed(session, 2 * HOLD)
        claim = leases.claim(session, priced(session, key_id).id, worker(session))
        assert claim is not None
        leases.settle(session, claim.lease, Completed(SAID))
        priced(session, key_id)

        successor, _ = keys.rotate(session, key_id)
        assert spent(session, successor.id) == COST


def test_a_new_period_begins_at_nothing(sessions: Sessions) -> None:
    """And a job of the old one that ends in the new one changes nothing in it."""
    with sessions() as session:
        key_id = allowed(session, HOLD, "day")
        old = priced(session, key_id)
        session.get_one(ApiKey, key_id).spent_since -= 86_400_000
        hold = session.exec(select(LedgerEntry).where(col(LedgerEntry.job_id) == old.id)).one()
        hold.created_at -= 86_400_000
    with sessions() as session:
        priced(session, key_id)
        jobs.cancel(session, old.account_id, old.id)

        assert spent(session, key_id) == HOLD


@pytest.mark.parametrize(
    "kind, began, ends",
    [
        ("day", "2026-12-31T00:00", "2027-01-01T00:00"),
        ("month", "2026-12-01T00:00", "2027-01-01T00:00"),
    ],
)
def test_periods_are_those_of_the_calendar(kind: str, began: str, ends: str) -> None:
    """By UTC."""

    def moment(text: str) -> int:
        return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)

    assert allowances.period(kind, moment("2026-12-31T23:59")) == (moment(began), moment(ends))
