"""Accounts. The only writer of their names."""

from sqlmodel import Session, col, select

from shared import ids
from shared.tables import Account


def ensure(session: Session, name: str) -> Account:
    """The account of this name, made now if there is none."""
    account = session.exec(select(Account).where(col(Account.name) == name)).one_or_none()
    if account is None:
        account = Account(id=ids.prefixed("acct_"), name=name)
        session.add(account)
        session.flush()
    return account
