"""Who asks: the account behind a key or token, and what it lets its bearer do."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from starlette.datastructures import Headers

from api.meters import Bounds
from api.tokens import Tokens, is_token
from shared import accounts, keys
from shared.catalog import Model
from shared.db import Transactions
from shared.errors import InvalidApiKey, ModelNotAllowed, PermissionDenied
from shared.keys import Bearer, Scope
from shared.limits import AccountLimits, Limits
from shared.tables import Account, ApiKey

L = TypeVar("L", bound=Limits)

REMEMBERED: Final = 10_000
"""Callers of a process; beyond that the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the account behind a valid key or token, and what it lets its bearer do."""

    account_id: str
    key_id: str | None
    """None: a token's bearer, who has no key."""
    scopes: frozenset[str]
    models: tuple[str, ...] | None = None
    """Names, aliases and patterns such as `openrouter/*`; None is every model."""
    key_limits: Limits | None = None
    account_limits: AccountLimits | None = None
    remembered: Bearer | None = field(default=None, compare=False)
    """What has yet to be confirmed, if nobody looked for this request."""

    @classmethod
    def by_key(cls, key: ApiKey, account: Account) -> "Caller":
        """Who holds a key."""
        return cls(
            account.id,
            key.id,
            frozenset(key.scopes),
            None if key.models is None else tuple(key.models),
            _limits(Limits, key.limits),
            _limits(AccountLimits, account.limits),
        )

    @classmethod
    def by_token(cls, account: Account, scopes: Collection[str]) -> "Caller":
        """Who bears a token that names the account."""
        return cls(
            account.id,
            None,
            frozenset(scopes),
            account_limits=_limits(AccountLimits, account.limits),
        )

    @property
    def actor(self) -> str:
        """Who did it, for the audit log."""
        return self.key_id or self.account_id

    @property
    def bounds(self) -> list[Bounds]:
        """The limits that hold for whatever it asks."""
        found: list[Bounds] = []
        if self.key_limits is not None and self.key_id is not None:
            found.append(Bounds("key", self.key_id, self.key_limits))
        if self.account_limits is not None:
            found.append(Bounds("account", self.account_id, self.account_limits))
        return found

    def takes_turns(self, model: Model) -> bool:
        """Whether a job may not start at once, for only so many of its kind may run."""
        ours = self.account_limits
        return model.running is not None or bool(ours and ours.running)

    def may_use(self, model: Model) -> bool:
        """Whether this caller may ask for the model; what it falls back to comes with it."""
        names = [model.name, *model.aliases]
        return self.models is None or any(
            name == allowed or (allowed.endswith("*") and name.startswith(allowed[:-1]))
            for allowed in self.models
            for name in names
        )

    def check_model(self, model: Model) -> None:
        """Raises `ModelNotAllowed` unless this caller may ask for the model."""
        if not self.may_use(model):
            raise ModelNotAllowed(
                f"This key may not ask for the model {model.name[:100]!r}.", param="model"
            )

    def check_scope(self, scope: Scope) -> None:
        """Raises `PermissionDenied` unless this caller has the scope."""
        if scope not in self.scopes:
            raise PermissionDenied(f"This needs a key with the scope {scope!r}.")


def _limits(kind: type[L], stored: dict[str, int] | None) -> L | None:
    return None if stored is None else kind.model_validate(stored)


class Callers:
    """Finds them, and remembers those with a key.

    A `remembered` caller may have changed since, or be none any more: it is good for what a
    transaction decides that confirms it, and for nothing else.
    """

    def __init__(self, tx: Transactions, tokens: Tokens) -> None:
        self._tx = tx
        self._tokens = tokens
        self._known: dict[bytes, Caller] = {}
        """By a hash of the key's text, which nobody should find here."""

    async def look(self, headers: Headers) -> Caller:
        """The caller by `Authorization: Bearer ak_…` or `X-API-Key: ak_…`, or a token as bearer.

        Raises `InvalidApiKey`, and `Unavailable` when nobody can tell.
        """
        text, is_bearer = _text(headers)
        if not text:
            raise InvalidApiKey(
                "Send an API key: 'Authorization: Bearer ak_…' or 'X-API-Key: ak_…'."
            )
        if is_bearer and is_token(text):
            claims = await self._tokens.verify(text)
            account = await self._tx.read(accounts.named_by_token, claims.account_id)
            return Caller.by_token(account, claims.scopes)
        name = _hash(text)
        self._known.pop(name, None)
        key, account = await self._tx.look(keys.authenticate_all, text)
        caller = Caller.by_key(key, account)
        self._known[name] = replace(caller, remembered=Bearer.of(key, account))
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return caller

    def remembered(self, headers: Headers) -> Caller | None:
        """What the caller was when it was last looked for, if that is known."""
        text, _ = _text(headers)
        return self._known.get(_hash(text))


def _text(headers: Headers) -> tuple[str, bool]:
    """A key or token, and whether it came as a bearer's."""
    scheme, _, text = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip(), True
    return headers.get("x-api-key", ""), False


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
