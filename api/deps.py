"""What a route may ask for: the front and the caller."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from api.front import Front
from shared import keys
from shared.errors import InvalidApiKey


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the account behind a valid key."""

    account_id: str
    key_id: str


async def _front(request: Request) -> Front:  # a plain `def` would take a detour through a thread
    front: Front = request.app.state.front
    return front


_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer ak_…`")
_header = APIKeyHeader(name="X-API-Key", auto_error=False)


async def _authorized(
    front: Annotated[Front, Depends(_front)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> Caller:
    """The caller by `Authorization: Bearer ak_…` or `X-API-Key: ak_…`. Raises `InvalidApiKey`."""
    text = bearer.credentials if bearer is not None else header
    if not text:
        raise InvalidApiKey("Send an API key: 'Authorization: Bearer ak_…' or 'X-API-Key: ak_…'.")
    key = await front.tx.read(keys.authenticate, text)
    return Caller(key.account_id, key.id)


FrontDep = Annotated[Front, Depends(_front)]
AuthorizedCaller = Annotated[Caller, Depends(_authorized)]
