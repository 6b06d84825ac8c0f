"""What is in flight, and who is let in: what the feeder does with rows.

A job that waits for its turn has no `run_at` and no hint.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

import sqlalchemy
from sqlalchemy import Integer, bindparam, update
from sqlmodel import Session, col, select

from shared import hints, lanes, leases, ledger
from shared.clock import database_now
from shared.errors import InsufficientCredits, KeyLimitReached
from shared.lifecycle import JobStatus, Lane
from shared.limits import AccountLimits
from shared.tables import Account, Job, Leader

ROLE: Final = "control"
"""Whose holder alone lets jobs in, so that nobody has to count twice."""
PATIENCE: Final = 16
"""Refusals after which the rest of an account's jobs are left for later."""
_QUEUED: Final = (col(Job.status) == JobStatus.QUEUED.value, col(Job.hinted_at).is_(None))
_PUT_OFF: Final = (*_QUEUED, col(Job.run_at) <= database_now())
_MOST: Final = bindparam("most", type_=Integer)
_IN_A_LANE: Final = col(Job.lane).in_([lane.value for lane in Lane])  # how the index begins
_WAITS: Final = sqlalchemy.select(col(Job.id)).where(*_QUEUED, _IN_A_LANE).limit(1)
_DUE: Final = sqlalchemy.select(col(Job.id)).where(*_PUT_OFF, _IN_A_LANE).limit(_MOST)


class Flight(NamedTuple):
    """How many jobs run or may start any moment."""

    accounts: Counter[str]
    models: Counter[str]
    batches: Counter[str]


class LetIn(NamedTuple):
    """What became of those whose turn it was."""

    hinted: list[str]
    short: set[str]
    """Batches some of whose lines cannot be paid for now."""


def anybody(session: Session) -> bool:
    """Whether a job waits for its turn, or for its time."""
    return session.execute(_WAITS).first() is not None


def due(session: Session, limit: int) -> list[str]:
    """The jobs whose time has come since they were put off."""
    return list(session.execute(_DUE, {"most": limit}).scalars())


def come(session: Session, job_ids: Sequence[str]) -> None:
    """Let these wait for their turn from now on."""
    waiting = update(Job).where(col(Job.id).in_(job_ids), *_PUT_OFF)
    session.execute(waiting.values(run_at=None, status_reason="waiting_for_worker"))


def flight(session: Session) -> Flight:
    """What runs and what has a hint, by account, model as it was named, and batch."""
    counts = Flight(Counter(), Counter(), Counter())
    running = [col(Job.status) == JobStatus.IN_PROGRESS.value]
    out = [
        # In the words of the index: it is read from the first hint on.
        [
            col(Job.status) == JobStatus.QUEUED.value,
            col(Job.lane) == lane.value,
            col(Job.hinted_at) > 0,
        ]
        for lane in Lane
    ]
    # Counted here: to group them, SQLite would walk through all jobs there are, in order.
    whose = sqlalchemy.select(col(Job.account_id), col(Job.model), col(Job.batch_id))
    # Hints first: a job that starts meanwhile is counted twice, for a moment, and never missed.
    for which in (*out, running):
        for account_id, model, batch_id in session.execute(whose.where(*which)):
            counts.accounts[account_id] += 1
            counts.models[model] += 1
            counts.batches[batch_id or ""] += 1
    return counts


def free(session: Session, lane: Lane) -> int:
    """Slots that jobs of a lane may take now: a third is kept from the batch lane."""
    slots = leases.slots(session)
    runs = {each: lanes.running(session, each.value) for each in Lane}
    if lane == Lane.BATCH:
        return max(min(1, slots), slots * 2 // 3) - runs[lane]
    return slots - sum(runs.values())


def terms(session: Session, account_ids: Collection[str]) -> dict[str, AccountLimits]:
    """Of those of these accounts that have any."""
    limited = select(Account.id, Account.limits).where(
        col(Account.id).in_(account_ids), col(Account.limits).is_not(None)
    )
    return {
        account_id: AccountLimits.model_validate(limits)
        for account_id, limits in session.exec(limited)
    }


def let_in(session: Session, holder: str, job_ids: Sequence[str], *, after_ms: int) -> LetIn:
    """Mark these as hinted, as far as they can be paid for, if `holder` still leads.

    What a job may cost is set aside here when it was not at its submission.
    """
    leads = select(Leader.holder).where(col(Leader.role) == ROLE).with_for_update(read=True)
    if session.exec(leads).first() != holder:
        return LetIn([], set())
    # Marked first: what is marked is held still, and can neither end nor expire unpaid.
    marked = hints.mark(session, job_ids, after_ms=after_ms)
    unpaid = sqlalchemy.select(
        *map(col, (Job.account_id, Job.key_id, Job.batch_id, Job.id, Job.hold_due))
    ).where(col(Job.id).in_(marked), col(Job.hold_due).is_not(None))
    # In the order of accounts, as everybody locks them.
    in_turn = unpaid.order_by(col(Job.account_id), col(Job.key_id), col(Job.id))
    batches: dict[str, str | None] = {}
    paid: list[str] = []
    for (account_id, key_id), owed in groupby(
        session.execute(in_turn).all(), key=lambda row: (row[0], row[1])
    ):
        holds: dict[str, int] = {}
        for _, _, batch_id, job_id, hold_due in owed:
            batches[job_id], holds[job_id] = batch_id, hold_due or 0
        paid += _paid(session, account_id, key_id, holds)
    ours = update(Job).execution_options(synchronize_session=False)
    session.execute(ours.where(col(Job.id).in_(paid)).values(held=col(Job.hold_due), hold_due=None))
    refused = batches.keys() - set(paid)
    session.execute(ours.where(col(Job.id).in_(refused)).values(hinted_at=None))
    return LetIn(
        [job_id for job_id in marked if job_id not in refused],
        {batches[job_id] or "" for job_id in refused},
    )


def _paid(
    session: Session, account_id: str, key_id: str | None, holds: Mapping[str, int]
) -> list[str]:
    """Set aside what these may cost, as many as there are credits for, and say for which.

    One that costs too much does not stand in the way of those behind it.
    """
    paid: list[str] = []
    groups, refusals = [list(holds)], 0
    while groups and refusals < PATIENCE:
        some = groups.pop()
        try:
            with session.begin_nested():
                ledger.hold(
                    session, account_id, {name: holds[name] for name in some}, key_id=key_id
                )
            paid += some
        except (InsufficientCredits, KeyLimitReached):
            refusals += 1
            half = len(some) // 2
            groups += [group for group in (some[half:], some[:half]) if half]
    return paid
