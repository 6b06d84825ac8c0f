"""What a route may ask for: the front, and a caller who may do what the route does."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from api.front import Front
from api.meters import Bounds
from api.throttle import Admission
from api.tokens import is_token
from shared import accounts, keys
from shared.catalog import Model
from shared.errors import InvalidApiKey, ModelNotAllowed, PermissionDenied
from shared.keys import Scope
from shared.limits import AccountLimits, Limits
from shared.tables import Account, ApiKey

L = TypeVar("L", bound=Limits)


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


async def _front(request: Request) -> Front:  # a plain `def` would take a detour through a thread
    front: Front = request.app.state.front
    return front


_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer ak_…`, or a JWT")
_header = APIKeyHeader(name="X-API-Key", auto_error=False)


async def _caller(
    front: Annotated[Front, Depends(_front)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> Caller:
    """The caller by `Authorization: Bearer ak_…` or `X-API-Key: ak_…`, or by a token as bearer.

    Raises `InvalidApiKey`, and `Unavailable` when nobody can tell.
    """
    text = bearer.credentials if bearer is not None else header
    if not text:
        raise InvalidApiKey("Send an API key: 'Authorization: Bearer ak_…' or 'X-API-Key: ak_…'.")
    if bearer is not None and is_token(text):
        claims = await front.tokens.verify(text)
        account = await front.tx.read(accounts.named_by_token, claims.account_id)
        return Caller.by_token(account, claims.scopes)
    return Caller.by_key(*await front.tx.read(keys.authenticate, text))


async def _authorized(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    caller.check_scope(keys.COMPLETIONS)
    return caller


async def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    caller.check_scope(keys.ADMIN)
    return caller


async def _admission(
    front: Annotated[Front, Depends(_front)], caller: Annotated[Caller, Depends(_authorized)]
) -> AsyncIterator[Admission]:
    # What comes after `yield` runs when the last byte of the answer was sent, or nobody wants it.
    async with front.throttle.admission(caller.account_id, caller.bounds) as admission:
        yield admission


FrontDep = Annotated[Front, Depends(_front)]
AuthorizedCaller = Annotated[Caller, Depends(_authorized)]
"""May submit, and see what the account has."""
AdmissionDep = Annotated[Admission, Depends(_admission)]
"""Takes what the request needs of its caller's limits."""
AdminCaller = Annotated[Caller, Depends(_admin)]
"""May administer every account."""
