"""Failures on our wire: always OpenAI's envelope, and headers that keep SDKs from harm."""

import math
from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from shared.errors import (
    Fault,
    InternalError,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
)

log = structlog.get_logger()

LONGEST_RETRY_AFTER = 60
"""Seconds; SDKs give up on more."""


def json_response(
    content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON, from a value or from bytes that are JSON already."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, status, headers, media_type="application/json")


def refusal(error: ServiceError) -> Response:
    """A failure before anything was accepted: the SDKs may try again where that can help."""
    headers = dict(error.headers)
    if error.status in (429, 503) or error.retry_after is not None:
        seconds = error.retry_after.total_seconds() if error.retry_after else 1.0
        headers["retry-after"] = str(min(LONGEST_RETRY_AFTER, max(1, math.ceil(seconds))))
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    return envelope(Fault.of(error), headers=headers)


def envelope(fault: Fault, *, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """`{"error": {…}}` with the fault's status; `more` goes into the error object."""
    return json_response({"error": {**fault.body(), **more}}, status=fault.status, headers=headers)


def install(app: FastAPI) -> None:
    """Turn every way to fail into the envelope; FastAPI's own `detail` never leaves."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _bug)


async def _service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return refusal(error)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return refusal(NotFound(f"There is nothing at {request.url.path[:100]!r}."))
    if error.status_code == 405:
        said = f"{request.method} is not possible at {request.url.path[:100]!r}."
        response = refusal(MethodNotAllowed(said))
        response.headers["allow"] = ", ".join(_methods(request))
        return response
    return refusal(InvalidRequest(str(error.detail), status=error.status_code))


def _methods(request: Request) -> list[str]:
    """The methods that are possible at this path; each of its routes knows only its own."""
    routes = request.app.router.routes
    return [
        method
        for method in ("GET", "POST", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ]


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    return refusal(InvalidRequest(f"{param}: {first['msg']}.", param=param))


async def _bug(request: Request, _: Exception) -> Response:
    return internal_error(request.scope["state"]["request_id"])  # it is logged further out


def internal_error(request_id: str) -> Response:
    """Our own fault, masked."""
    return refusal(InternalError(f"Something went wrong on our side. The log has {request_id}."))
