"""What is read of credits: an account's balance, entries and sums, and what nobody paid for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import ColumnElement, Numeric, bindparam, case, cast, func, literal
from sqlmodel import Session, col, select

from shared import ids
from shared.errors import InvalidRequest
from shared.tables import Account, Attempt, Job, LedgerEntry

DAY: Final = 86_400_000
"""Milliseconds."""
_BALANCE: Final = select(col(Account.credits), col(Account.held)).where(
    col(Account.id) == bindparam("account")
)
Grouping = Literal["day", "model", "key"]


@dataclass(frozen=True, slots=True)
class Balance:
    """In nano-credits."""

    available: int
    held: int


class Loss(NamedTuple):
    """What attempts with one outcome at one model cost us, or (`unpaid`) its completed jobs."""

    model: str
    outcome: str
    times: int
    credits: int
    """Nano-credits."""


def balance(session: Session, account_id: str) -> Balance:
    """What can be spent, and what is set aside for jobs that have not ended."""
    return Balance(*session.connection().execute(_BALANCE, {"account": account_id}).one())


def entries(
    session: Session, account_id: str, *, after: str | None, limit: int
) -> tuple[list[LedgerEntry], bool]:
    """The newest movements, or those before an entry; whether there are more.

    Raises `InvalidRequest` for a cursor that names no entry of the account.
    """
    query = select(LedgerEntry).where(col(LedgerEntry.account_id) == account_id)
    if after is not None:
        known = session.get(LedgerEntry, after) if ids.is_prefixed(after, "") else None
        if known is None or known.account_id != account_id:
            raise InvalidRequest("There is no such entry to go on after.", param="after")
        query = query.where(col(LedgerEntry.id) < after)
    rows = session.exec(query.order_by(col(LedgerEntry.id).desc()).limit(limit + 1)).all()
    return list(rows[:limit]), len(rows) > limit


def usage(
    session: Session, account_id: str, *, since: int, until: int, by: Sequence[Grouping]
) -> list[dict[str, Any]]:
    """Sums over the jobs that ended in a span of Unix milliseconds, a row for each group.

    `day` is the Unix second at which a day (UTC) began; `credits` are nano-credits.
    """
    groups = [_GROUPS[each].label(each) for each in by]
    sums = [
        func.count().label("jobs"),
        _tokens("prompt_tokens").label("prompt_tokens"),
        _tokens("completion_tokens").label("completion_tokens"),
        func.coalesce(func.sum(Job.cost), 0).label("credits"),
    ]
    rows = session.execute(
        select(*groups, *sums)
        .where(
            col(Job.account_id) == account_id,
            col(Job.completed_at) >= since,
            col(Job.completed_at) < until,
        )
        .group_by(*groups)
        .order_by(*groups)
    )
    return [{name: _number(value) for name, value in row._mapping.items()} for row in rows]


_GROUPS: Final[dict[Grouping, Any]] = {
    "day": (col(Job.completed_at) - col(Job.completed_at) % DAY) / 1000,
    "model": col(Job.model),
    "key": col(Job.key_id),
}


def losses(session: Session, *, since: int) -> list[Loss]:
    """What jobs that ended since (Unix milliseconds) cost us and no account, the most first."""
    tries = (
        select(col(Attempt.model), col(Attempt.outcome), func.count(), func.sum(_UNPAID))
        .join(Job, col(Job.id) == col(Attempt.job_id))
        .where(
            col(Job.completed_at) >= since,
            col(Attempt.cost).is_not(None),
            col(Attempt.outcome) != "completed",
        )
        .group_by(col(Attempt.model), col(Attempt.outcome))
    )
    lacking = (
        select(col(Job.model), literal("unpaid"), func.count(), func.sum(col(Job.unpaid)))
        .where(col(Job.completed_at) >= since, col(Job.unpaid).is_not(None))
        .group_by(col(Job.model))
    )
    found = [
        Loss(model, outcome, times, int(credits))
        for query in (tries, lacking)
        for model, outcome, times, credits in session.execute(query)
    ]
    return sorted(found, key=lambda loss: -loss.credits)


_UNPAID: Final = col(Attempt.cost) - case(
    (col(Attempt.outcome) == "cancelled", func.coalesce(col(Job.cost), 0)), else_=0
)
"""Of a cancelled attempt that was read to its end, what was delivered is paid for."""


def _tokens(name: str) -> ColumnElement[Any]:
    count = cast(col(Job.usage)[name].as_string(), Numeric)
    return func.coalesce(func.sum(count), 0)


def _number(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else int(value)
