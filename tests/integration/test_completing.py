"""Lines that complete together: the same rows as if each had been settled by itself."""

from dataclasses import replace
from typing import Any

import pytest
from sqlmodel import Session, col, select

from shared import accounts, audit, completing, jobs, leases, webhooks
from shared.completing import Done, Ended
from shared.leases import Claim
from shared.ledger import grant
from shared.lifecycle import JobStatus
from shared.outcomes import Completed, HandedBack
from shared.tables import Attempt, Event, Job, JobContent, LedgerEntry
from shared.webhooks import Terms
from tests.batches import begun, let_in
from tests.factories import Sessions, spoken, worker

OWN = {"id", "batch_id", "created_at", "started_at", "completed_at", "worker_id", "expires_at"}
"""Columns in which two jobs may differ that ended in the same way."""


def claims(session: Session, lines: int = 3, model: str = "dear") -> list[Claim]:
    """The lines of a batch in a worker's hands."""
    grant(session, accounts.ensure(session, "ours").id, 10**9, note="for tests")
    batch, worker_id = begun(session, lines, {"model": model}), worker(session)
    taken = [(let_in(session, batch, number + 1).id, worker_id) for number in range(lines)]
    found = [claim for claim in leases.claim_all(session, taken) if claim is not None]
    assert len(found) == lines
    return found


def completed(claim: Claim, **said: Any) -> Done:
    """It ends, and the model that spoke has its price."""
    outcome = Completed(replace(spoken(claim.job), model=claim.job.model, **said))
    return Done(claim.lease, outcome, claim.job)


def statuses(ended: list[Ended | None]) -> list[JobStatus | None]:
    """What became of each."""
    return [one and one.status for one in ended]


def row(session: Session, job_id: str) -> dict[str, Any]:
    """All that is kept of a job, but for what is its own."""
    job = session.get_one(Job, job_id, populate_existing=True).model_dump(exclude=OWN)
    content = session.get_one(JobContent, job_id, populate_existing=True)
    [tried] = session.exec(select(Attempt).where(col(Attempt.job_id) == job_id))
    session.refresh(tried)
    entries = select(LedgerEntry.kind, LedgerEntry.credits).where(col(LedgerEntry.job_id) == job_id)
    return {
        **job,
        "log": content.log,
        "spoken": bool(content.response),
        "tried": (tried.outcome, tried.usage, tried.model, tried.ended_at is not None),
        "ledger": sorted(map(tuple, session.exec(entries))),
    }


def credits(session: Session) -> tuple[int, int]:
    """What the account can spend, and what is set aside."""
    account = accounts.ensure(session, "ours")
    session.refresh(account)
    return account.credits, account.held


def test_many_end_as_each_would_alone(sessions: Sessions) -> None:
    """Status, content, attempt, ledger and balance."""
    with sessions() as session:
        first, second = claims(session), claims(session)
        for claim in first:
            line = completed(claim)
            assert leases.settle(session, line.lease, line.outcome)
        ended = completing.settle(session, [completed(claim) for claim in second])

        assert statuses(ended) == [JobStatus.COMPLETED] * 3
        alone = [row(session, claim.job.id) for claim in first]
        assert [row(session, claim.job.id) for claim in second] == alone
        charged = sum(each["cost"] for each in alone)
        assert charged > 0
        assert credits(session) == (2 * 10**9 - 2 * charged, 0)
    assert audit.examine(sessions.engine).flaws == []


def test_what_an_account_has_left_is_known_when_its_jobs_have_ended(sessions: Sessions) -> None:
    """Whoever waits for one of them is told, and need not look."""
    with sessions() as session:
        lines = [completed(claim) for claim in claims(session)]
        ended = completing.settle(session, lines)

        assert [one and one.available for one in ended] == [credits(session)[0]] * 3


def test_a_lost_line_is_late_and_the_others_end(sessions: Sessions) -> None:
    """Its successor's work stays as it is."""
    with sessions() as session:
        some = claims(session)
        leases.settle(session, some[1].lease, HandedBack())
        lines = [completed(claim) for claim in some]
        lines[1] = replace(lines[1], lease=replace(lines[1].lease, attempt=2))

        assert statuses(completing.settle(session, lines)) == [
            JobStatus.COMPLETED,
            None,
            JobStatus.COMPLETED,
        ]
        assert session.get_one(Job, some[1].job.id, populate_existing=True).status == "queued"


def test_lines_may_be_settled_again(sessions: Sessions) -> None:
    """The answer to their COMMIT was lost: they are charged once."""
    with sessions() as session:
        lines = [completed(claim) for claim in claims(session)]
        completing.settle(session, lines)
    with sessions() as session:
        after = credits(session)
        again = completing.settle(session, lines)

        assert statuses(again) == [JobStatus.COMPLETED] * 3
        assert credits(session) == after
    assert audit.examine(sessions.engine).flaws == []


def test_a_line_that_took_more_than_was_held_is_paid(sessions: Sessions) -> None:
    """As far as the account goes, which never owes anything."""
    with sessions() as session:
        [claim] = claims(session, 1)
        held = claim.job.held or 0
        grant(session, claim.job.account_id, 5 - credits(session)[0], note="spent elsewhere")
        usage = {"prompt_tokens": 9_000, "completion_tokens": 9_000, "total_tokens": 18_000}

        [ended] = completing.settle(session, [completed(claim, usage=usage)])
        assert ended == Ended(JobStatus.COMPLETED, None, heralded=True)
        assert session.get_one(Job, claim.job.id, populate_existing=True).cost == held + 5
        assert credits(session) == (0, 0)
    assert audit.examine(sessions.engine).flaws == []


@pytest.mark.parametrize("asks", [True, False])
def test_endpoints_are_told_of_lines_if_they_ask(sessions: Sessions, asks: bool) -> None:
    """One event each, as when each ends alone."""
    with sessions() as session:
        account_id = accounts.ensure(session, "ours").id
        events = ["chat.completion.completed"] if asks else None
        webhooks.create(session, account_id, Terms(url="https://app.example/", events=events))
        some = claims(session, 2)
        ended = completing.settle(session, [completed(claim) for claim in some])

        assert [one.heralded for one in ended if one] == [True, True]
        told = set(session.exec(select(Event.subject).where(col(Event.type).like("chat.%"))))
        assert told == ({f"chatcmpl-{claim.job.id}" for claim in some} if asks else set())


def test_a_free_line_leaves_the_ledger_alone(sessions: Sessions) -> None:
    """Nothing was held, so there is nothing to release."""
    with sessions() as session:
        lines = [completed(claim) for claim in claims(session, 2, model="test")]

        silent = Ended(JobStatus.COMPLETED, None, heralded=False)
        assert completing.settle(session, lines) == [silent] * 2
        found = jobs.find(session, lines[0].job.account_id, lines[0].job.id)
        assert (found.cost, row(session, found.id)["ledger"]) == (None, [])
