"""Credits: the only writer of balances and of the ledger. Integers, in nano-credits.

What an account can spend is the sum of its entries, always. A hold is set aside in the transaction
that accepts a job; in the one that ends it the hold is released and what it cost is charged. Both
exist once per job, by the database's own word.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import (
    BigInteger,
    Executable,
    Text,
    bindparam,
    cast,
    exists,
    func,
    insert,
    literal,
    true,
    union_all,
    update,
)
from sqlmodel import Session, col, select

from shared import allowances, clock, ids, prepared, rows
from shared.clock import database_now
from shared.errors import InsufficientCredits
from shared.lifecycle import JobStatus
from shared.prices import NANO, shown
from shared.tables import Account, ApiKey, Job, LedgerEntry

log = structlog.get_logger()

GRANT, HOLD, RELEASE, CHARGE = "grant", "hold", "release", "charge"
HELD_FOR = timedelta(seconds=5)
"""After which it is worth asking again when what is missing is only set aside."""

# Every job that costs something needs these, and to build them takes longer than to run them.
_LIMITED: Final = exists(col(ApiKey.id)).where(
    col(ApiKey.id) == bindparam("key"), col(ApiKey.credit_limit).is_not(None)
)
"""Whether the key has an allowance of its own."""
_HOLD: Final = (
    update(Account)
    .where(col(Account.id) == bindparam("account"), col(Account.credits) >= bindparam("wanted"))
    .values(
        credits=col(Account.credits) - bindparam("wanted"),
        held=col(Account.held) + bindparam("wanted"),
    )
    .returning(database_now().label("now"), _LIMITED.label("limited"))
)
_RELEASE: Final[Executable] = (
    update(Account)
    .where(col(Account.id) == bindparam("account"))
    .values(
        credits=col(Account.credits) + bindparam("back"),
        held=col(Account.held) - bindparam("released"),
    )
    .returning(_LIMITED.label("limited"), col(Account.credits).label("available"))
)
_ENTRIES: Final = ("id", "job_id", "kind", "credits")
"""What differs between entries of one moment and account."""
_LISTS: Final = tuple(f"all_{name}" for name in _ENTRIES)


class SetAside(NamedTuple):
    """What is set aside in all accounts."""

    oldest_ms: int
    """How long ago the oldest job that holds credits was accepted; 0 when none does."""
    drift: int
    """Nano-credits by which accounts differ from what their jobs hold, added up; 0 is right."""
    unpaid: int
    """Nano-credits that jobs cost and no account could pay."""


class Settled(NamedTuple):
    """A job that has ended, what was held for it, and what it is charged."""

    account_id: str
    key_id: str | None
    job_id: str
    held: int
    charged: int


def grant(session: Session, account_id: str, nano_credits: int, *, note: str) -> LedgerEntry:
    """Give an account `nano_credits` to spend."""
    balance = update(Account).where(col(Account.id) == account_id)
    session.execute(balance.values(credits=col(Account.credits) + nano_credits))
    entry = LedgerEntry(account_id=account_id, kind=GRANT, credits=nano_credits, note=note)
    session.add(entry)
    return entry


def hold(
    session: Session, account_id: str, holds: Mapping[str, int], *, key_id: str | None = None
) -> int:
    """Set aside the most that these jobs may cost, all or none; when that was, by the database.

    Raises `InsufficientCredits`, or `KeyLimitReached` for what the key may not spend.
    """
    total = sum(holds.values())
    wanted = {"account": account_id, "wanted": total, "key": key_id}
    entries = [(job_id, HOLD, -nano) for job_id, nano in holds.items()]
    moved = _move(session, _HOLD, wanted, entries)
    if moved is None:
        raise _insufficient(session, account_id, total)
    now, limited = moved
    if limited:
        allowances.take(session, key_id, total)
    return int(now)


def _move(
    session: Session,
    change: Executable,
    named: Mapping[str, Any],
    moved: Sequence[tuple[str, str, int]],
) -> tuple[Any, ...] | None:
    """Change an account, and write down what that moves: for which job, as what, how many
    nano-credits. Returns what the change does; None, and nothing was moved, when it may not be."""
    connection, now = session.connection(), clock.now()
    entries = [(ids.new_id(), *entry) for entry in moved]
    if connection.dialect.name == "postgresql":
        lists = [",".join(str(entry[place]) for entry in entries) for place in range(len(_LISTS))]
        written = {**named, **dict(zip(_LISTS, lists, strict=True)), "now": now}
        return prepared.each(connection, _entering(change), [written])[0]
    [changed] = prepared.each(connection, change, [named])
    if changed is not None:
        blank = {**rows.blank(LedgerEntry), "account_id": named["account"], "created_at": now}
        whole = ({**blank, **dict(zip(_ENTRIES, entry, strict=True))} for entry in entries)
        rows.insert(connection, LedgerEntry, whole)
    return changed


@lru_cache
def _entering(change: Any) -> Executable:
    """The UPDATE of an account, and in the same statement its entries, whose fields come as lists:
    a round trip instead of three."""
    moved = change.cte("moved")
    lists = (func.string_to_array(bindparam(name), ",") for name in _LISTS)
    entry = func.unnest(*lists).table_valued(*_ENTRIES).render_derived("entry")
    fields = {
        "id": entry.c.id,
        "account_id": bindparam("account", type_=Text),
        "job_id": entry.c.job_id,
        "kind": entry.c.kind,
        "credits": cast(entry.c.credits, BigInteger),
        "note": literal(""),
        "created_at": bindparam("now", type_=BigInteger),
    }
    written = select(*fields.values()).select_from(moved.join(entry, true()))
    entered = insert(LedgerEntry).from_select([*fields], written, include_defaults=False)
    return select(moved).add_cte(entered.cte("entered"))


def _insufficient(session: Session, account_id: str, required: int) -> InsufficientCredits:
    account = session.get_one(Account, account_id, populate_existing=True)
    available, held = account.credits, account.held
    said = f"It may cost {shown(required)} credits, and {shown(available)} are available"
    details = {"required": required / NANO, "available": available / NANO, "held": held / NANO}
    if available + held >= required:
        return InsufficientCredits(
            f"{said}; {shown(held)} more are set aside for jobs that have not ended.",
            code="credits_held",
            retry_after=HELD_FOR,
            details=details,
        )
    return InsufficientCredits(f"{said}.", details=details)


def settle(session: Session, job: Job, cost: int) -> int:
    """Release what was held for an ended job and charge what it cost; returns what was charged.

    Called once, by the move that ends the job. More than was held is charged only as far as the
    account goes: a balance never falls below zero.
    """
    if job.held is None:
        return 0
    charged = cost
    if cost > job.held:
        locked = (
            select(Account.credits)
            .where(col(Account.id) == job.account_id)
            .with_for_update(key_share=True)
        )
        charged = min(cost, job.held + session.exec(locked).one())
        if charged < cost:
            log.warning("used_more_than_paid", job_id=job.id, nano_credits=cost - charged)
    back = {"account": job.account_id, "back": job.held - charged, "released": job.held}
    charge = [(job.id, CHARGE, -charged)] if charged else []
    entries = [(job.id, RELEASE, job.held), *charge]
    limited, _ = _release(session, {**back, "key": job.key_id}, entries)
    if limited and job.key_id is not None and job.held != charged:
        allowances.give_back(session, [(job.key_id, job.id, job.held - charged)])
    return charged


def settle_all(session: Session, ended: Sequence[Settled]) -> int | None:
    """The same for jobs of one account that cost no more than was held, in a few statements.

    Returns the nano-credits that it can spend now, if there are such jobs.
    """
    if not ended:
        return None
    account_id = ended[0].account_id
    released, back = sum(one.held for one in ended), sum(one.held - one.charged for one in ended)
    given = [(one.key_id, one.job_id, one.held - one.charged) for one in ended if one.key_id]
    of_keys = {key_id for key_id, _, _ in given}
    moved = {
        "account": account_id,
        "back": back,
        "released": released,
        "key": max(of_keys, default=None),
    }
    entries = [(one.job_id, RELEASE, one.held) for one in ended]
    entries += [(one.job_id, CHARGE, -one.charged) for one in ended if one.charged]
    limited, available = _release(session, moved, entries)
    if limited or len(of_keys) > 1:  # mostly they are one key's, which has none
        allowances.give_back(session, given)
    return available


def _release(
    session: Session, moved: Mapping[str, Any], entries: Sequence[tuple[str, str, int]]
) -> tuple[bool, int]:
    """Whether the key has an allowance of its own, and what the account can spend now."""
    released = _move(session, _RELEASE, moved, entries)
    if released is None:
        raise LookupError(f"There is no account {moved['account']!r}.")
    limited, available = released
    return bool(limited), int(available)


def held(session: Session) -> SetAside:
    """What is set aside, added up over all open jobs by one statement, which sees one moment, and
    what nobody paid."""
    open_jobs = union_all(
        *(  # each reads an index of its own
            select(col(Job.account_id), col(Job.held), col(Job.created_at)).where(
                col(Job.status) == status.value, col(Job.held) > 0
            )
            for status in (JobStatus.QUEUED, JobStatus.IN_PROGRESS)
        )
    ).subquery()
    per_account = (
        select(
            open_jobs.c.account_id,
            func.sum(open_jobs.c.held).label("held"),
            func.min(open_jobs.c.created_at).label("since"),
        )
        .group_by(open_jobs.c.account_id)
        .subquery()
    )
    differs = func.abs(col(Account.held) - func.coalesce(per_account.c.held, 0))
    found = select(database_now() - func.min(per_account.c.since), func.sum(differs))
    both = found.select_from(Account).outerjoin(
        per_account, per_account.c.account_id == col(Account.id)
    )
    age, drift = session.execute(both).one()
    unpaid = select(func.sum(Job.unpaid)).where(col(Job.unpaid).is_not(None))
    return SetAside(max(0, age or 0), int(drift or 0), int(session.exec(unpaid).one() or 0))
