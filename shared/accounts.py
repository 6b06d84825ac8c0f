"""Accounts. The only writer of their names and limits, and of whether they may do anything."""

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from shared import clock, ids, pages
from shared.errors import InvalidApiKey, InvalidRequest, NotFound
from shared.tables import Account

PREFIX = "acct_"


def ensure(session: Session, name: str) -> Account:
    """The account of this name, made now if there is none."""
    account = session.exec(select(Account).where(col(Account.name) == name)).one_or_none()
    return account or create(session, name)


def create(session: Session, name: str, *, limits: dict[str, int] | None = None) -> Account:
    """A new account. Raises `InvalidRequest` when there is one of that name."""
    account = Account(id=ids.prefixed(PREFIX), name=name, limits=limits)
    try:
        with session.begin_nested():
            session.add(account)
    except IntegrityError:
        said = f"There is an account of the name {name[:100]!r} already."
        raise InvalidRequest(said, param="name") from None
    return account


def find(session: Session, account_id: str) -> Account:
    """The account with this id. Raises `NotFound`."""
    account = session.get(Account, account_id) if ids.is_prefixed(account_id, PREFIX) else None
    if account is None:
        raise NotFound(f"There is no account {account_id[:100]!r}.", param="account_id")
    return account


def named(session: Session, name: str) -> Account:
    """The account of this name, or with this id. Raises `NotFound`."""
    account = session.exec(select(Account).where(col(Account.name) == name)).one_or_none()
    return account or find(session, name)


def list_accounts(session: Session) -> list[Account]:
    """All accounts, newest last."""
    return list(session.exec(select(Account).order_by(col(Account.id))))


def page(
    session: Session, *, after: str | None = None, limit: int = pages.MOST
) -> tuple[list[Account], bool]:
    """The newest accounts, or those before one; whether there are more.

    Raises `InvalidRequest` for a cursor that names no account.
    """
    rows = select(Account)
    return pages.page(session, rows, col(Account.id), prefix=PREFIX, after=after, limit=limit)


def limit(session: Session, account_id: str, limits: dict[str, int] | None) -> Account:
    """Set what all its keys and tokens together may ask for. Raises `NotFound`."""
    account = find(session, account_id)
    account.limits = limits
    return account


def disable(session: Session, account_id: str) -> Account:
    """Refuse its keys and tokens from now on; its jobs go on. Raises `NotFound`."""
    account = find(session, account_id)
    account.disabled_at = account.disabled_at or clock.now()
    return account


def enable(session: Session, account_id: str) -> Account:
    """Accept its keys and tokens again. Raises `NotFound`."""
    account = find(session, account_id)
    account.disabled_at = None
    return account


def named_by_token(session: Session, account_id: str) -> Account:
    """The account that a verified token names. Raises `InvalidApiKey`."""
    try:
        account = find(session, account_id)
    except NotFound:
        said = "The token's 'sub' names no account of this service."
        raise InvalidApiKey(said) from None
    check_enabled(account)
    return account


def check_enabled(account: Account) -> None:
    """Raises `InvalidApiKey` when the account is disabled."""
    if account.disabled_at is not None:
        raise InvalidApiKey("The account is disabled.")
