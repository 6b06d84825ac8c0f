"""What is set aside is watched: its age, and whether accounts and jobs agree."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import Session
from structlog.testing import capture_logs

from api.holds import Holds
from api.middleware import Metrics
from shared import accounts, db, jobs, ledger
from shared.db import Transactions
from shared.lifecycle import JobStatus
from shared.prices import NANO
from tests.factories import Sessions, claimed, job_in, submitted

HOLDS: dict[str, Any] = {"hold": 1_000, "prices": {"test": ["1", "1", "1", "2"]}}


def funded(session: Session, name: str = "ours") -> str:
    """An account with a credit to spend."""
    account_id = accounts.ensure(session, name).id
    ledger.grant(session, account_id, NANO, note="test")
    return account_id


def test_accounts_agree_with_their_jobs_whatever_becomes_of_them(sessions: Sessions) -> None:
    """Queued, running, ended, free: accounts hold what those hold that have not ended."""
    with sessions() as session:
        assert ledger.held(session) == (0, 0, 0)
        funded(session)
        funded(session, "theirs")
        submitted(session)
        for status in JobStatus:
            job_in(session, status, **HOLDS)
        submitted(session, account="theirs", **HOLDS)

        assert ledger.held(session).drift == 0


def test_the_oldest_job_that_holds_credits_tells_its_age(sessions: Sessions) -> None:
    """Free jobs hold nothing, and those that have ended no more."""
    with sessions() as session:
        account_id = funded(session)
        free, old = submitted(session), submitted(session, **HOLDS)
        claimed(session, **HOLDS)
        for job_id, age in ((free.id, 9_000_000), (old.id, 3_600_000)):
            aged = text("UPDATE jobs SET created_at = created_at - :age WHERE id = :id")
            session.connection().execute(aged, {"age": age, "id": job_id})
        assert 3_600_000 <= ledger.held(session).oldest_ms < 9_000_000

        jobs.cancel(session, account_id, old.id)
        assert ledger.held(session).oldest_ms < 3_600_000


@pytest.fixture
async def tx(database_url: str) -> AsyncIterator[Transactions]:
    """Transactions on a migrated, empty database."""
    opened = Transactions(db.connect(database_url))
    yield opened
    opened.close()


def value(metrics: Metrics, name: str) -> float:
    """One of the metrics of holds, as it is shown now."""
    shown = metrics.registry.get_sample_value(f"sluice_holds_{name}")
    assert shown is not None
    return shown


async def until(condition: Callable[[], object]) -> None:
    """Wait for the next look."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_drift_is_shown_to_the_nano_and_told_once(tx: Transactions) -> None:
    """One account too much, another too little: they do not make up for each other."""
    await tx(funded)
    await tx(funded, "theirs")
    await tx(submitted, **HOLDS)
    await tx(submitted, account="theirs", **HOLDS)
    metrics = Metrics()
    watch = Holds(tx, metrics, every=0.01)

    with capture_logs() as logs:
        watch.start()
        await until(lambda: value(metrics, "drift") == 0)
        await tx(_damage)
        await until(lambda: value(metrics, "drift") == 10e-9)
        before = value(metrics, "oldest_seconds")
        await until(lambda: value(metrics, "oldest_seconds") > before)
        await watch.stop()

    told = [(line["event"], line["log_level"], line["credits"]) for line in logs]
    assert told == [("holds_drift", "error", "0.00000001")]


def _damage(session: Session) -> None:
    change = "UPDATE accounts SET held = held + CASE name WHEN 'ours' THEN 7 ELSE -3 END"
    session.connection().execute(text(change))


async def test_what_cannot_be_looked_at_is_not_shown_as_right(tx: Transactions) -> None:
    """While the database is away the metrics are no numbers, which no alert takes for 0."""
    metrics = Metrics()
    watch = Holds(tx, metrics, every=0.01)
    watch.start()
    await until(lambda: value(metrics, "drift") == 0)
    tx.close()

    await until(lambda: math.isnan(value(metrics, "drift")))
    await watch.stop()
