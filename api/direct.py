"""The way to the routes that take submissions, past FastAPI.

They are asked most, and to route a request, to resolve what they depend on and to unwind it again
took longer than they do. FastAPI has them all the same, for the document.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from api import errors
from api.callers import Caller
from api.front import Front
from api.throttle import Admission
from api.wire.headers import may_repeat
from shared.errors import ServiceError, Unavailable
from shared.keys import COMPLETIONS, KeyChanged


class Direct:
    """Pure ASGI: calls these routes with what they ask for, and leaves all else to the app."""

    def __init__(self, app: FastAPI, *, routes: Iterable[APIRoute]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): route for route in routes for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = scope["type"] == "http" and self._routes.get((scope["method"], scope["path"]))
        if not route:
            await self._app(scope, receive, send)
            return
        scope["route"], scope["app"] = route, self._app
        try:
            answered = await _asked(route, _Request(scope, receive))
        except ServiceError as error:
            await errors.refusal(error)(scope, receive, send)
            return
        try:
            await answered.response(scope, receive, send)
        finally:  # the last byte was sent, or nobody wants it
            await answered.admission.end()


class _Request(Request):
    """Starlette's, with headers that are looked up, and a body that is most often one piece."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self._known = _Headers(scope=scope)
        self._whole: bytes | None = None

    @property
    def headers(self) -> Headers:
        """By their names, in whatever case."""
        return self._known

    async def body(self) -> bytes:
        """All of it, however often it is asked for. Raises `ClientDisconnect`."""
        if self._whole is not None:
            return self._whole
        message = await self.receive()
        pieces = [message.get("body", b"")]
        while message.get("more_body"):
            message = await self.receive()
            pieces.append(message.get("body", b""))
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._whole = b"".join(pieces)
        return self._whole


class _Headers(Headers):
    """Starlette's own are read through, and a name is encoded, for each that is looked for."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope=scope)
        each = reversed(self.raw)  # of several with a name the first counts
        self._first = {name.decode("latin-1"): value.decode("latin-1") for name, value in each}

    def __getitem__(self, key: str) -> str:
        return self._first[key.lower()]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._first

    def get(self, key: str, default: Any = None) -> Any:
        """The first of this name."""
        return self._first.get(key.lower(), default)

    def getlist(self, key: str) -> list[str]:
        """All of this name."""
        return super().getlist(key) if key in self else []


class _Answered(NamedTuple):
    response: Response
    admission: Admission


async def _asked(route: APIRoute, request: Request) -> _Answered:
    """The route's answer to its caller, who is looked up if that makes a difference.

    One that is remembered is confirmed by the transaction that accepts the job. Whatever else comes
    of it is told only if the caller is still the same; otherwise all is done anew.
    """
    front: Front = request.app.state.front
    headers = request.headers
    remembered = None if may_repeat(headers) else front.callers.remembered(headers)
    if remembered is not None:
        admission = front.throttle.admission(remembered)
        try:
            return await _admitted(route, request, remembered, admission)
        except ServiceError as error:
            if admission.accepted or isinstance(error, Unavailable):
                raise
            caller = await front.callers.look(headers)
            if caller == remembered and not isinstance(error, KeyChanged):
                raise
    else:
        caller = await front.callers.look(headers)
    return await _admitted(route, request, caller, front.throttle.admission(caller))


async def _admitted(
    route: APIRoute, request: Request, caller: Caller, admission: Admission
) -> _Answered:
    try:
        caller.check_scope(COMPLETIONS)
        front = request.app.state.front
        return _Answered(await route.endpoint(request, front, caller, admission), admission)
    except BaseException:
        await admission.end()
        raise
