"""Places: the held and streamed jobs of an account that have not ended, counted from their rows."""

from collections.abc import Mapping
from typing import Final

import sqlalchemy
from sqlalchemy import bindparam, func, text
from sqlmodel import Session, col, select

from shared.tables import Account, Job
from shared.tables.jobs import IN_PLACE

Taken = Mapping[tuple[str | None, str], int]
"""How many places are taken, by the key and by the model as the caller named it."""

_TAKEN: Final = (
    sqlalchemy.select(col(Job.key_id), col(Job.model), func.count())
    .where(col(Job.account_id) == bindparam("account"), text(IN_PLACE))
    .group_by(col(Job.key_id), col(Job.model))
)


def taken(session: Session, account_id: str) -> Taken:
    """The account's places that are taken now."""
    counted = session.execute(_TAKEN, {"account": account_id})
    return {(key_id, model): places for key_id, model, places in counted}


def taken_for_sure(session: Session, account_id: str) -> Taken:
    """The same, and no other transaction that asks so takes one before this one has ended.

    It holds the account's row, as `ledger.hold` does: ask before anything else of that account's.
    """
    ours = select(Account.id).where(col(Account.id) == account_id)
    session.execute(ours.with_for_update(key_share=True))
    return taken(session, account_id)
