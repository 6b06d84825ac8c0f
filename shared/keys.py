"""API keys: mint, find, revoke. Only a hash of the secret is kept.

A key reads `ak_<public id>_<secret>`: found by its public id, proven by its secret. The secret has
160 random bits, so a plain SHA-256 cannot be searched and a slow hash would only slow requests.
"""

import hashlib
import hmac
import re

from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import accounts, clock, ids
from shared.errors import InvalidApiKey, NotFound
from shared.tables import Account, ApiKey

PUBLIC_LETTERS = 12
SECRET_LETTERS = 32
_KEY = re.compile(
    rf"ak_([{ids.ALPHABET}]{{{PUBLIC_LETTERS}}})_([{ids.ALPHABET}]{{{SECRET_LETTERS}}})"
)


def create(
    session: Session, *, account: str, name: str | None = None, expires_at: int | None = None
) -> tuple[ApiKey, str]:
    """Mint a key for the account of that name; the key's text is returned here and never again."""
    public_id, secret = ids.random_letters(PUBLIC_LETTERS), ids.random_letters(SECRET_LETTERS)
    key = ApiKey(
        id=ids.prefixed("key_"),
        public_id=public_id,
        secret_hash=_hash(secret),
        account_id=accounts.ensure(session, account).id,
        name=name,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, f"ak_{public_id}_{secret}"


def authenticate(session: Session, text: str) -> ApiKey:
    """The key behind its text. Raises `InvalidApiKey`."""
    match = _KEY.fullmatch(text)
    if match is None:
        raise InvalidApiKey("This is not an API key of this service: they read ak_…_….")
    key = session.exec(select(ApiKey).where(col(ApiKey.public_id) == match[1])).one_or_none()
    proven = hmac.compare_digest(key.secret_hash if key else bytes(32), _hash(match[2]))
    if key is None or not proven or key.revoked_at is not None:
        raise InvalidApiKey("This API key is unknown or was revoked.")
    if key.expires_at is not None and key.expires_at <= clock.now():
        raise InvalidApiKey("This API key has expired.")
    return key


def list_keys(session: Session, *, account: str | None = None) -> list[ApiKey]:
    """All keys, or those of one account, newest last."""
    query = select(ApiKey).order_by(col(ApiKey.id))
    if account is not None:
        query = query.join(Account).where(col(Account.name) == account)
    return list(session.exec(query))


def revoke(session: Session, key_id: str) -> ApiKey:
    """End a key now and for good. Raises `NotFound`."""
    ended = update(ApiKey).where(col(ApiKey.id) == key_id, col(ApiKey.revoked_at).is_(None))
    session.execute(ended.values(revoked_at=clock.now()))
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound(f"There is no key {key_id!r}.")
    return key


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
