"""Who is let in: only by the leader, only what can be paid for, and never past a limit."""

from threading import Lock

import pytest
from sqlalchemy import event
from sqlmodel import Session, col, select

from shared import accounts, feeding, hints, jobs, keys, leadership, leases, ledger, sources
from shared.lifecycle import JobStatus, Lane
from shared.prices import NANO
from shared.sources import Source
from shared.tables import Account, Job, LedgerEntry
from tests.factories import HOUR, Sessions, claimed, submitted, waiting, worker

ME = "ctl_me"


@pytest.fixture
def leading(sessions: Sessions) -> Sessions:
    """A database whose control loops we run."""
    with sessions() as session:
        leadership.lead(session, feeding.ROLE, ME, None)
    return sessions


def owed(session: Session, hold_due: int, **fields: object) -> str:
    """A job that waits, and has to be paid for before it may start."""
    job = submitted(session, hinted=False, hold_due=hold_due * NANO, prices={"m": []}, **fields)
    return job.id


def money(session: Session) -> tuple[float, float]:
    """What the account has, and what is held of it, in credits."""
    ours = session.exec(select(Account), execution_options={"populate_existing": True}).one()
    return ours.credits / NANO, ours.held / NANO


def test_sources_are_what_is_alike(sessions: Sessions) -> None:
    """By account and model; what runs, is hinted, planned or ended is none."""
    with sessions() as session:
        for model in ("m1", "m2", "m1"):
            submitted(session, hinted=False, model=model)
        submitted(session, hinted=False, account="other")
        submitted(session, hinted=True)
        submitted(session, hinted=False, run_at=1)
        submitted(session, hinted=False, lane=Lane.BATCH)
        claimed(session)
        ours, other = (accounts.ensure(session, name).id for name in ("ours", "other"))

        assert sorted(sources.waiting(session, Lane.INTERACTIVE, 10), key=str) == sorted(
            [
                Source(ours, None, "m1", 2),
                Source(ours, None, "m2", 1),
                Source(other, None, "test", 1),
            ],
            key=str,
        )
        [one] = sources.waiting(session, Lane.BATCH, 10)
        assert one == Source(ours, None, "test", 1)


def test_what_runs_or_is_hinted_is_in_flight(sessions: Sessions) -> None:
    """And counts by account, by model and by batch."""
    with sessions() as session:
        claimed(session, model="m1")
        submitted(session, model="m2")
        submitted(session, hinted=False)
        ours = accounts.ensure(session, "ours").id

        flight = feeding.flight(session)

    assert flight.accounts == {ours: 2}
    assert flight.models == {"m1": 1, "m2": 1}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite looks only once
def test_who_starts_while_we_count_is_in_flight(sessions: Sessions) -> None:
    """It had a hint when we began and runs when we end: it must not slip through between."""
    with sessions() as session:
        ours, by = accounts.ensure(session, "ours").id, worker(session)
        hinted = [submitted(session).id for _ in range(6)]

    def start_one(*_: object) -> None:
        if hinted and not starting.locked():
            with starting, sessions() as session:
                assert leases.claim(session, hinted.pop(), by) is not None

    starting = Lock()
    with sessions() as session:
        event.listen(sessions.engine, "after_cursor_execute", start_one)
        flight = feeding.flight(session)
        event.remove(sessions.engine, "after_cursor_execute", start_one)

    assert len(hinted) < 6
    assert flight.accounts[ours] >= 6


def test_a_job_that_was_put_off_waits_for_its_turn_when_its_time_has_come(
    sessions: Sessions,
) -> None:
    """By the database's clock."""
    with sessions() as session:
        late = submitted(session, hinted=False, run_at=1).id
        submitted(session, hinted=False, run_at=2**53)

        assert feeding.due(session, 10) == [late]
        feeding.come(session, [late])
        assert waiting(session) == [late]
        assert feeding.due(session, 10) == []


def test_only_the_leader_lets_in(leading: Sessions) -> None:
    """Whoever led before counted what it could not know."""
    with leading() as session:
        job_id = submitted(session, hinted=False).id

        assert feeding.let_in(session, "ctl_former", [job_id], after_ms=HOUR).hinted == []
        assert waiting(session) == [job_id]
        assert feeding.let_in(session, ME, [job_id], after_ms=HOUR).hinted == [job_id]


def test_what_a_job_may_cost_is_set_aside_as_it_is_let_in(leading: Sessions) -> None:
    """Once; and released with its end like any other hold."""
    with leading() as session:
        job_id = owed(session, 3)
        ledger.grant(session, accounts.ensure(session, "ours").id, 10 * NANO, note="")
        assert money(session) == (10, 0)

        assert feeding.let_in(session, ME, [job_id], after_ms=HOUR) == ([job_id], set())
        assert money(session) == (7, 3)
        hints.forget(session, [job_id])
        assert feeding.let_in(session, ME, [job_id], after_ms=HOUR).hinted == [job_id]
        assert money(session) == (7, 3)
        jobs.move(session, job_id, JobStatus.CANCELLED)
        assert money(session) == (10, 0)
        kinds = session.exec(select(LedgerEntry.kind).where(col(LedgerEntry.job_id) == job_id))
        assert sorted(kinds) == ["hold", "release"]


def test_what_cannot_be_paid_for_waits(leading: Sessions) -> None:
    """As many as there are credits for come in, the oldest first; the others later."""
    with leading() as session:
        many = [owed(session, 2) for _ in range(8)]
        ours = accounts.ensure(session, "ours").id
        ledger.grant(session, ours, 5 * NANO, note="")

        assert feeding.let_in(session, ME, many, after_ms=HOUR) == (many[:2], {""})
        assert waiting(session) == many[2:]
        ledger.grant(session, ours, 100 * NANO, note="")
        assert feeding.let_in(session, ME, many[2:], after_ms=HOUR) == (many[2:], set())
        assert money(session) == (105 - 16, 16)


def test_what_its_key_may_not_spend_waits_too(leading: Sessions) -> None:
    """The account's other keys go on."""
    with leading() as session:
        key, _ = keys.create(session, account="ours", credit_limit=3 * NANO)
        ledger.grant(session, key.account_id, 100 * NANO, note="")
        limited = [owed(session, 2, key_id=key.id) for _ in range(2)]
        free = owed(session, 2)

        done = feeding.let_in(session, ME, [*limited, free], after_ms=HOUR)

    assert set(done.hinted) == {limited[0], free}
    assert done.short == {""}


def test_what_costs_too_much_does_not_stand_in_the_way(leading: Sessions) -> None:
    """Of what waits behind it."""
    with leading() as session:
        ledger.grant(session, accounts.ensure(session, "ours").id, 10 * NANO, note="")
        dear, *cheap = [owed(session, credits) for credits in (50, 1, 1, 1)]

        assert feeding.let_in(session, ME, [dear, *cheap], after_ms=HOUR).hinted == cheap
        assert waiting(session) == [dear]
        assert money(session) == (7, 3)


def test_what_expires_as_it_is_let_in_leaves_nothing_held(leading: Sessions) -> None:
    """Its deadline passed after it was chosen."""
    with leading() as session:
        job_id = owed(session, 1, expires_at=1)
        ledger.grant(session, accounts.ensure(session, "ours").id, 10 * NANO, note="")

        assert feeding.let_in(session, ME, [job_id], after_ms=HOUR) == ([], set())
        assert money(session) == (10, 0)


def test_a_line_that_is_cancelled_meanwhile_leaves_nothing_held(leading: Sessions) -> None:
    """Either it ends first, or it is let in first and its hold is released."""
    with leading() as session:
        ledger.grant(session, accounts.ensure(session, "ours").id, 100 * NANO, note="")
    for _ in range(20):
        with leading() as session:
            job_id = owed(session, 1)

        def let_in(session: Session, job_id: str = job_id) -> object:
            return feeding.let_in(session, ME, [job_id], after_ms=HOUR)

        def cancel(session: Session, job_id: str = job_id) -> object:
            return jobs.ask_to_stop(session, session.get_one(Job, job_id))

        leading.at_once(let_in, cancel)

    with leading() as session:
        assert money(session) == (100, 0)
