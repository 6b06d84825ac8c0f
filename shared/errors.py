"""Every failure a caller can be told about, with its HTTP status and code on our wire.

ServiceError
├── InvalidRequest 400
│   └── ContextLengthExceeded 400
├── InvalidApiKey 401
├── PermissionDenied 403
│   └── ModelNotAllowed 403
├── InsufficientCredits 402 · KeyLimitReached 402
├── NotFound 404
│   └── ModelNotFound 404
├── MethodNotAllowed 405
├── StreamExpired 410 · ContentExpired 410
├── IdempotencyInFlight 409 · IdempotencyKeyReused 422
├── RequestTooLarge 413
├── UnsupportedMediaType 415
├── RateLimited 429
├── Unavailable 503 · QueueFull 503 · Draining 503 · ModelUnavailable 503
├── SyncWaitExceeded 504
├── InternalError 500
└── UpstreamError 502
    ├── UpstreamRejected 400        the upstream found the request itself at fault
    ├── UpstreamRateLimited 503
    ├── UpstreamOverloaded 503
    ├── UpstreamCredentials 503     its own 401 or 403; never shown as the caller's
    ├── UpstreamTimeout 504
    ├── UpstreamDisconnected 502    it hung up, or ended without a finish reason
    └── WorkerLost 502
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any


class ServiceError(Exception):
    """Something the caller can be told."""

    status = 500
    code = "internal_error"
    type = "server_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: timedelta | None = None,
        status: int | None = None,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.details = dict(details or {})
        """What else goes into the error object, for programs to read."""
        self.headers = dict(headers or {})
        """What else goes into the answer's head."""
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.status = status or type(self).status
        self.code = code or type(self).code


class InvalidRequest(ServiceError):
    """The request cannot be understood; `param` names the field."""

    status, code, type = 400, "invalid_request_error", "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's window."""

    code = "context_length_exceeded"


class InvalidApiKey(ServiceError):
    """No key or token, an unknown one, one that has ended, or one of a disabled account."""

    status, code, type = 401, "invalid_api_key", "authentication_error"


class PermissionDenied(ServiceError):
    """The key lacks the scope."""

    status, code, type = 403, "permission_denied", "permission_error"


class ModelNotAllowed(PermissionDenied):
    """The key is for other models."""

    code = "model_not_allowed"


class InsufficientCredits(ServiceError):
    """The account cannot cover the most this request could cost."""

    status, code, type = 402, "insufficient_credits", "billing_error"


class KeyLimitReached(ServiceError):
    """The key has an allowance of its own, and what is left of it does not cover the request."""

    status, code, type = 402, "key_limit_reached", "billing_error"


class NotFound(ServiceError):
    """There is no such thing, or it belongs to another account."""

    status, code, type = 404, "not_found", "invalid_request_error"


class ModelNotFound(NotFound):
    """The catalogue has no such model."""

    code = "model_not_found"


class MethodNotAllowed(ServiceError):
    """The path exists, with other methods."""

    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class StreamExpired(ServiceError):
    """Nothing is left of the stream to replay."""

    status, code, type = 410, "stream_expired", "invalid_request_error"


class ContentExpired(ServiceError):
    """The job is known, but retention has deleted what was asked and said."""

    status, code, type = 410, "content_expired", "invalid_request_error"


class IdempotencyInFlight(ServiceError):
    """The same key is being accepted elsewhere at this moment."""

    status, code, type = 409, "idempotency_in_flight", "invalid_request_error"
    retryable = True


class IdempotencyKeyReused(ServiceError):
    """This key came before, with another request."""

    status, code, type = 422, "idempotency_key_reused", "invalid_request_error"


class RequestTooLarge(ServiceError):
    """The body is over the limit."""

    status, code, type = 413, "request_too_large", "invalid_request_error"


class UnsupportedMediaType(ServiceError):
    """The body is not JSON by its own word."""

    status, code, type = 415, "unsupported_media_type", "invalid_request_error"


class RateLimited(ServiceError):
    """Too many requests or tokens in a minute, or too much at once."""

    status, code, type, retryable = 429, "rate_limit_exceeded", "rate_limit_error", True


class Unavailable(ServiceError):
    """The database or Redis is away."""

    status, code, retryable = 503, "service_unavailable", True


class QueueFull(Unavailable):
    """There is more waiting than we are willing to keep."""

    code = "queue_full"


class Draining(Unavailable):
    """This process is shutting down; another one will answer."""

    code = "draining"


class ModelUnavailable(Unavailable):
    """No upstream can serve this model now."""

    code = "model_unavailable"


class SyncWaitExceeded(ServiceError):
    """The job goes on, but this connection has been held long enough."""

    status, code, retryable = 504, "sync_wait_exceeded", True


class InternalError(ServiceError):
    """Our own fault; the message is masked and the request id leads to the log."""


class UpstreamError(ServiceError):
    """The server that runs the model failed us."""

    status, code, type, retryable = 502, "upstream_error", "upstream_error", True
    upstream_status: int | None = None
    """The HTTP status of its answer; None when it gave none."""


class UpstreamRejected(UpstreamError):
    """The upstream says the request itself is wrong; trying again cannot help."""

    status, code, type, retryable = 400, "upstream_rejected", "invalid_request_error", False


class UpstreamRateLimited(UpstreamError):
    """The upstream asks us to slow down, perhaps for `retry_after`."""

    status, code = 503, "upstream_rate_limited"


class UpstreamOverloaded(UpstreamError):
    """The upstream has no capacity now."""

    status, code = 503, "upstream_overloaded"


class UpstreamCredentials(UpstreamError):
    """The upstream refuses our key."""

    status, code, retryable = 503, "upstream_credentials", False


class UpstreamTimeout(UpstreamError):
    """No connection, no first byte, silence, or too long in all."""

    status, code = 504, "upstream_timeout"


class UpstreamDisconnected(UpstreamError):
    """The stream broke off, or ended without saying why."""

    code = "upstream_disconnected"


class WorkerLost(UpstreamError):
    """The worker died, or lost its lease, with this job in hand."""

    code = "worker_lost"


class IllegalTransition(Exception):
    """The row has moved on: the guarded UPDATE found nothing to change."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure as it is kept with a job: everything the wire needs to show it again later."""

    status: int
    code: str
    type: str
    message: str
    param: str | None = None
    retryable: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    """What else goes into the error object."""

    @classmethod
    def of(cls, error: ServiceError) -> "Fault":
        """Keep a raised error."""
        return cls(
            status=error.status,
            code=error.code,
            type=error.type,
            message=error.message,
            param=error.param,
            retryable=error.retryable,
            details=error.details,
        )

    def with_details(self, **more: Any) -> "Fault":
        """The same failure, and more for programs to read."""
        return replace(self, details={**self.details, **more})

    def body(self) -> dict[str, Any]:
        """OpenAI's error object; all four of its keys are always there."""
        return {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
            "retryable": self.retryable,
            **self.details,
        }
