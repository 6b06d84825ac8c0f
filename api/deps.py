"""What a route may ask for: the front, and a caller who may do what the route does."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from api.callers import Caller
from api.front import Front
from api.throttle import Admission
from shared import keys


async def _front(request: Request) -> Front:  # a plain `def` would take a detour through a thread
    front: Front = request.app.state.front
    return front


_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer ak_…`, or a JWT")
_header = APIKeyHeader(name="X-API-Key", auto_error=False)


async def _caller(
    request: Request,
    front: Annotated[Front, Depends(_front)],
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    __: Annotated[str | None, Security(_header)],
) -> Caller:
    # The last two are there for the OpenAPI document.
    return await front.callers.look(request.headers)


async def _authorized(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    caller.check_scope(keys.COMPLETIONS)
    return caller


async def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    caller.check_scope(keys.ADMIN)
    return caller


async def _admission(_: Annotated[Caller, Depends(_authorized)]) -> Admission:
    raise NotImplementedError  # it is `api.direct` that asks routes which take one


FrontDep = Annotated[Front, Depends(_front)]
AuthorizedCaller = Annotated[Caller, Depends(_authorized)]
"""May submit, and see what the account has."""
AdmissionDep = Annotated[Admission, Depends(_admission)]
"""Takes what the request needs of its caller's limits."""
AdminCaller = Annotated[Caller, Depends(_admin)]
"""May administer every account."""
