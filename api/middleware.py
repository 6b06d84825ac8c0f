"""Around every request: its id, its line in the log, its metrics, and the limit of its body."""

import time
from collections.abc import Callable, Mapping
from functools import cache

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from shared import ids
from shared.errors import RequestTooLarge, UnsupportedMediaType

log = structlog.get_logger()

READ_ON = 4
"""A body over the limit is read, and thrown away, up to so many times the limit: a client that is
still sending would not see our answer."""


LEFT = 499
"""Noted as the status when a client hung up while it was sending; nobody is there to see it."""


class Metrics:
    """What `/metrics` shows of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sluice_http_requests",
            "Answers by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "sluice_http_request_seconds",
            "Seconds to the first byte of the answer.",
            ["route"],
            registry=self.registry,
        )
        # To find the child of a metric takes longer than to count.
        self.requests_of = cache(self.requests.labels)
        self.seconds_of = cache(self.seconds.labels)
        self.accepted = Counter(
            "sluice_jobs_accepted", "Jobs accepted.", ["lane"], registry=self.registry
        )
        self.accepted_of = cache(self.accepted.labels)
        self.readers = Gauge(
            "sluice_readers", "Streams and held requests that listen.", registry=self.registry
        )
        self.jobs = Gauge(
            "sluice_jobs",
            "Jobs that have not ended, by status.",
            ["status"],
            registry=self.registry,
        )
        self.queued = Gauge(
            "sluice_jobs_queued", "Jobs that wait, by lane.", ["lane"], registry=self.registry
        )
        self.oldest_hold = Gauge(
            "sluice_holds_oldest_seconds",
            "Age of the oldest job that has not ended and holds credits.",
            registry=self.registry,
        )
        self.drift = Gauge(
            "sluice_holds_drift",
            "Credits by which accounts differ from what their open jobs hold; 0 is right.",
            registry=self.registry,
        )
        self.unpaid = Gauge(
            "sluice_unpaid",
            "Credits that jobs cost and no account could pay.",
            registry=self.registry,
        )
        self.workers = Gauge(
            "sluice_workers", "Worker processes presumed alive.", registry=self.registry
        )


class Requests:
    """Pure ASGI: Starlette's own base for middleware would buffer and slow the streams."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        limit_of: Callable[[str, str], int],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._limit_of = limit_of
        """Bytes that a body may have, by path and content type."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = ids.prefixed("req_")
        began = time.perf_counter()
        status = 0
        scope["state"]["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
                self._metrics.seconds_of(_route(scope)).observe(time.perf_counter() - began)
            await send(message)

        headers = dict(scope["headers"])
        limit = self._limit_of(scope["path"], headers.get(b"content-type", b"").decode("latin-1"))
        try:
            await self._app(scope, _plain(headers, _bounded(receive, limit)), with_id)
        except ClientDisconnect:
            status = LEFT
        except Exception:
            log.exception("request_broke")
            if status == 0:
                await errors.internal_error(request_id)(scope, receive, with_id)
        finally:
            route = _route(scope)
            self._metrics.requests_of(route, scope["method"], str(status)).inc()
            if not route.startswith(("/health", "/metrics")):
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round((time.perf_counter() - began) * 1000, 1),
                )


def _route(scope: Scope) -> str:
    """The route's pattern, so that ids do not become labels."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"


def _plain(headers: Mapping[bytes, bytes], receive: Receive) -> Receive:
    """Refuse a compressed body: what is small here may be huge once it is unpacked."""
    coding = headers.get(b"content-encoding", b"identity")
    if coding.lower() == b"identity":
        return receive

    async def plain() -> Message:
        message = await receive()
        if message.get("body"):
            raise UnsupportedMediaType("Send the body as it is, without 'Content-Encoding'.")
        return message

    return plain


def _bounded(receive: Receive, limit: int) -> Receive:
    """Refuse a body over the limit, once it has been read as far as is decent."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        while message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size <= limit:
                break
            if not message.get("more_body") or size > limit * READ_ON:
                raise RequestTooLarge(f"The request body is over {limit:,} bytes.")
            message = await receive()
        return message

    return bounded
