"""Credits: the only writer of balances and of the ledger. Integers, in nano-credits."""

from sqlalchemy import update
from sqlmodel import Session, col

from shared.tables import Account, LedgerEntry

NANO = 1_000_000_000
"""Nano-credits in a credit."""
GRANT = "grant"


def grant(session: Session, account_id: str, nano_credits: int, *, note: str) -> None:
    """Give an account `nano_credits` to spend."""
    balance = update(Account).where(col(Account.id) == account_id)
    session.execute(balance.values(credits=col(Account.credits) + nano_credits))
    session.add(LedgerEntry(account_id=account_id, kind=GRANT, credits=nano_credits, note=note))
