"""What a key of an account may spend by itself, in a day, in a month or in its whole life."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Final

from sqlalchemy import Update, bindparam, func, update
from sqlmodel import Session, col, select

from shared.clock import database_now
from shared.errors import KeyLimitReached
from shared.prices import NANO, shown
from shared.tables import ApiKey, LedgerEntry

DAY: Final = "day"


def take(session: Session, key_id: str | None, nano: int) -> None:
    """Count a hold against its key's allowance, if it has one. Raises `KeyLimitReached`."""
    key = session.get(ApiKey, key_id, populate_existing=True, with_for_update=True)
    if key is None or key.credit_limit is None:
        return
    now = session.execute(select(database_now())).scalar_one()
    since, ends_at = period(key.credit_period, now)
    if key.spent_since < since:
        key.spent, key.spent_since = 0, since
    left = max(0, key.credit_limit - key.spent)
    if nano > left:
        raise KeyLimitReached(
            f"It may cost {shown(nano)} credits, and this key may spend {shown(left)} more"
            + (f" this {key.credit_period}." if key.credit_period else "."),
            details={
                "required": nano / NANO,
                "available": left / NANO,
                "resets_at": None if ends_at is None else ends_at // 1000,
            },
        )
    key.spent += nano
    session.flush()


def left(session: Session, key_id: str | None) -> int | None:
    """Nano-credits that a key may spend in this period yet; None: as many as its account has."""
    limited = select(ApiKey).where(col(ApiKey.id) == key_id, col(ApiKey.credit_limit).is_not(None))
    key = session.exec(limited).first()
    if key is None:
        return None
    since, _ = period(key.credit_period, session.execute(select(database_now())).scalar_one())
    return max(0, (key.credit_limit or 0) - (key.spent if key.spent_since >= since else 0))


def give_back(session: Session, given: Sequence[tuple[str, str, int]]) -> None:
    """Count no longer what was held for jobs that have ended, and not charged: by key and job, how
    many nano-credits.

    Each counts in the period in which it was held, and in none if that is over.
    """
    named = [{"key": key_id, "job": job_id, "nano": nano} for key_id, job_id, nano in given]
    session.connection().execute(_given_back(session.get_bind().dialect.name), named)


@cache  # to build it takes longer than to run it
def _given_back(dialect: str) -> Update:
    held_at = (
        select(LedgerEntry.created_at)
        .where(col(LedgerEntry.job_id) == bindparam("job"), col(LedgerEntry.kind) == "hold")
        .scalar_subquery()
    )
    counted = update(ApiKey).where(
        col(ApiKey.id) == bindparam("key"),
        col(ApiKey.credit_limit).is_not(None),
        col(ApiKey.spent_since) <= held_at,
    )
    most = func.greatest if dialect == "postgresql" else func.max
    return counted.values(spent=most(col(ApiKey.spent) - bindparam("nano"), 0))


def period(kind: str | None, now: int) -> tuple[int, int | None]:
    """When the period that `now` falls into began, and when it ends: Unix milliseconds, by UTC."""
    if kind is None:
        return 0, None
    today = datetime.fromtimestamp(now / 1000, UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    if kind == DAY:
        began = today
        ends = datetime.fromtimestamp(today.timestamp() + 86_400, UTC)
    else:
        began = today.replace(day=1)
        year, month = divmod(began.year * 12 + began.month, 12)
        ends = began.replace(year=year, month=month + 1)
    return round(began.timestamp() * 1000), round(ends.timestamp() * 1000)
