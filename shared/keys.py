"""API keys: mint, find, change, rotate, revoke. Only a hash of the secret is kept.

A key reads `ak_<public id>_<secret>`: found by its public id, proven by its secret. The secret has
160 random bits, so a plain SHA-256 cannot be searched and a slow hash would only slow requests.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple, TypedDict, Unpack

import sqlalchemy
from sqlalchemy import bindparam, func, or_, update
from sqlmodel import Session, col, select

from shared import accounts, clock, ids, pages, rows
from shared.clock import database_now
from shared.errors import InvalidApiKey, InvalidRequest, NotFound
from shared.tables import Account, ApiKey, Job

PREFIX = "key_"
PUBLIC_LETTERS = 12
SECRET_LETTERS = 32
Scope = Literal["completions", "admin"]
COMPLETIONS: Final = "completions"
ADMIN: Final = "admin"
_KEY = re.compile(
    rf"ak_([{ids.ALPHABET}]{{{PUBLIC_LETTERS}}})_([{ids.ALPHABET}]{{{SECRET_LETTERS}}})"
)

_BEARER: Final = (
    sqlalchemy.select(
        (col(ApiKey.expires_at) <= database_now()).label("expired"),
        *rows.columns(ApiKey),
        *rows.columns(Account),
    )
    .join_from(ApiKey, Account)
    .where(col(ApiKey.public_id) == bindparam("named"))
)
_STILL: Final = (
    sqlalchemy.select(
        *map(col, (ApiKey.id, ApiKey.account_id, ApiKey.scopes, ApiKey.models, ApiKey.limits)),
        col(Account.limits),
    )
    .join_from(ApiKey, Account)
    .where(
        col(ApiKey.id) == bindparam("named"),
        col(ApiKey.revoked_at).is_(None),
        or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > database_now()),
        col(Account.disabled_at).is_(None),
    )
)


class KeyChanged(InvalidApiKey):
    """A bearer is not what was remembered of it."""


class Terms(TypedDict, total=False):
    """What a key lets its bearer do, as `tables.ApiKey` explains it."""

    name: str | None
    scopes: list[str]
    models: list[str] | None
    limits: dict[str, int] | None
    credit_limit: int | None
    credit_period: str | None
    expires_at: int | None


class Bearer(NamedTuple):
    """Whoever holds a key that is valid, as far as it matters to what they ask for."""

    key_id: str
    account_id: str
    scopes: list[str]
    models: list[str] | None
    limits: dict[str, int] | None
    account_limits: dict[str, int] | None

    @classmethod
    def of(cls, key: ApiKey, account: Account) -> "Bearer":
        """The one that `authenticate` has found."""
        return cls(key.id, account.id, key.scopes, key.models, key.limits, account.limits)


def create(session: Session, *, account: str, **terms: Unpack[Terms]) -> tuple[ApiKey, str]:
    """Mint a key for the account of that name; the key's text is returned here and never again."""
    return _mint(session, account_id=accounts.ensure(session, account).id, **terms)


def _mint(session: Session, **columns: Any) -> tuple[ApiKey, str]:
    public_id, secret = ids.random_letters(PUBLIC_LETTERS), ids.random_letters(SECRET_LETTERS)
    own = {"id": ids.prefixed(PREFIX), "public_id": public_id, "secret_hash": _hash(secret)}
    key = ApiKey(**{**columns, **own, "created_at": clock.now()})
    session.add(key)
    session.flush()
    return key, f"ak_{public_id}_{secret}"


def authenticate(session: Session, text: str) -> tuple[ApiKey, Account]:
    """The key behind its text, and whose it is, in one read. Raises `InvalidApiKey`."""
    match = _KEY.fullmatch(text)
    if match is None:
        raise InvalidApiKey("This is not an API key of this service: they read ak_…_….")
    found = session.connection().execute(_BEARER, {"named": match[1]}).one_or_none()
    key = None if found is None else rows.load(session, ApiKey, found[1:])
    proven = hmac.compare_digest(key.secret_hash if key else bytes(32), _hash(match[2]))
    if found is None or key is None or not proven or key.revoked_at is not None:
        raise InvalidApiKey("This API key is unknown or was revoked.")
    if found.expired:
        raise InvalidApiKey("This API key has expired.")
    account = rows.load(session, Account, found[1 + len(rows.columns(ApiKey)) :])
    accounts.check_enabled(account)
    return key, account


def authenticate_all(session: Session, texts: Iterable[str]) -> list[tuple[ApiKey, Account]]:
    """The same for several. Raises `InvalidApiKey` for any."""
    return [authenticate(session, text) for text in texts]


def confirm(session: Session, remembered: Iterable[Bearer]) -> None:
    """Raise `KeyChanged` unless their keys are still valid, and on the same terms."""
    sure: list[Bearer] = []
    for bearer in remembered:
        if bearer not in sure:
            found = session.connection().execute(_STILL, {"named": bearer.key_id}).one_or_none()
            if found is None or tuple(found) != bearer:
                raise KeyChanged("The key was changed just now.")
            sure.append(bearer)


def find(session: Session, key_id: str) -> ApiKey:
    """The key with this id. Raises `NotFound`."""
    key = session.get(ApiKey, key_id) if ids.is_prefixed(key_id, PREFIX) else None
    if key is None:
        raise NotFound(f"There is no key {key_id[:100]!r}.", param="key_id")
    return key


def list_keys(session: Session, *, account: str | None = None) -> list[ApiKey]:
    """All keys, or those of one account, newest last."""
    query = select(ApiKey).order_by(col(ApiKey.id))
    if account is not None:
        query = query.join(Account).where(col(Account.name) == account)
    return list(session.exec(query))


def page(
    session: Session,
    *,
    account_id: str | None = None,
    after: str | None = None,
    limit: int = pages.MOST,
) -> tuple[list[ApiKey], bool]:
    """The newest keys, or those before one; whether there are more.

    Raises `InvalidRequest` for a cursor that names no key.
    """
    rows = select(ApiKey)
    if account_id is not None:
        rows = rows.where(col(ApiKey.account_id) == account_id)
    return pages.page(session, rows, col(ApiKey.id), prefix=PREFIX, after=after, limit=limit)


def change(session: Session, key_id: str, **terms: Unpack[Terms]) -> ApiKey:
    """Change these terms and no others. Raises `NotFound`."""
    key = find(session, key_id)
    if key.credit_limit is None and terms.get("credit_limit") is not None:
        key.spent, key.spent_since = 0, clock.now()  # nothing was counted until now
    for name, value in terms.items():
        setattr(key, name, value)
    return key


def rotate(session: Session, key_id: str, *, overlap_ms: int = 0) -> tuple[ApiKey, str]:
    """Mint a successor on the same terms; the key itself goes on for `overlap_ms`, then ends.

    Raises `NotFound`, and `InvalidRequest` when the key has ended already.
    """
    locked = select(ApiKey, database_now()).where(col(ApiKey.id) == key_id).with_for_update()
    find(session, key_id)
    key, now = session.exec(locked, execution_options={"populate_existing": True}).one()
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise InvalidRequest("The key has ended; create another one.", param="key_id")
    # What is held is given back to the key that it was held by.
    holds = select(func.coalesce(func.sum(Job.held), 0)).where(
        col(Job.key_id) == key_id,
        col(Job.completed_at).is_(None),
        col(Job.created_at) >= key.spent_since,
    )
    spent = max(0, key.spent - int(session.exec(holds).one() or 0))
    successor = _mint(session, **{**key.model_dump(), "spent": spent})
    key.expires_at = min(key.expires_at or now + overlap_ms, now + overlap_ms)
    return successor


def revoke(session: Session, key_id: str) -> ApiKey:
    """End a key now and for good. Raises `NotFound`."""
    key = find(session, key_id)
    ended = update(ApiKey).where(col(ApiKey.id) == key_id, col(ApiKey.revoked_at).is_(None))
    session.execute(ended.values(revoked_at=clock.now()))
    return key


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
