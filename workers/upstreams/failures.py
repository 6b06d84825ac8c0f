"""An upstream's failures in our words: by status, by error object, by what broke on the way."""

import os
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from shared.errors import (
    UpstreamCredentials,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
)

LONGEST_QUOTE: Final = 2_000
"""Characters of an upstream's own words that go into a message."""
LONGEST_PAUSE: Final = 24 * 3600.0

STATUS_OF_WORD: Final = {
    "authentication_error": 401,
    "badrequesterror": 400,
    "billing_error": 402,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "request_too_large": 413,
    "service_unavailable": 503,
    "unavailable_error": 503,
}
"""What an error inside a stream means when it brings words (`code`, `type`) and no number."""

TOO_LONG: Final = (
    "maximum context length",
    "exceeds the available context size",
    "prompt is too long",
    "exceed context limit",
)
"""How servers that have no code for it say that the prompt does not fit."""


def refusal(
    status: int, body: bytes, headers: Mapping[str, str], *, secret: str | None
) -> UpstreamError:
    """The failure behind an answer that is not 200; `secret` is never part of its message.

    `headers`: by their names in lower case.
    """
    try:
        told: object = orjson.loads(body)
    except ValueError:
        told = body.decode(errors="replace")
    if isinstance(told, dict) and told.get("error"):
        told = told["error"]
    heading = f"The upstream answered {status}"
    return _failure(status, heading + _quote(told, secret), told, _pause(headers))


def in_band(error: object, *, secret: str | None) -> UpstreamError:
    """The failure behind an `error` inside a stream that began with 200."""
    return _failure(_status_of(error), "The upstream failed" + _quote(error, secret), error)


def unreachable(error: OSError) -> UpstreamError:
    """The failure behind a connection that was not made; it names no address."""
    if isinstance(error, socket.gaierror):
        return UpstreamDisconnected("The upstream's host name was not found.")
    if isinstance(error, ssl.SSLError):
        return UpstreamDisconnected("No connection to the upstream: TLS failed.")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return UpstreamDisconnected(f"No connection to the upstream: {reason}.")


def broken() -> UpstreamError:
    """The failure behind a connection that ends in mid-answer, or before it."""
    return UpstreamDisconnected("The connection to the upstream broke off.")


def _failure(
    status: int, message: str, told: object, retry_after: timedelta | None = None
) -> UpstreamError:
    if status in (401, 402, 403):
        # Its words are about our account there, and may quote the key: not for callers.
        return UpstreamCredentials(f"The upstream refuses our key ({status}).")
    if status == 429:
        return UpstreamRateLimited(message, retry_after=retry_after)
    if status in (503, 529):
        return UpstreamOverloaded(message, retry_after=retry_after)
    if status == 413:
        return UpstreamRejected(message, status=413, code="request_too_large")
    if 400 <= status < 500 and status not in (408, 409, 425):
        details = told if isinstance(told, dict) else {}
        param = details.get("param")
        param = param if isinstance(param, str) else None
        return UpstreamRejected(message, param=param, code=_code(details, message))
    return UpstreamError(message, retry_after=retry_after)


def _quote(told: object, secret: str | None) -> str:
    words = told
    if isinstance(told, dict):
        words = told.get("message") or told.get("detail") or orjson.dumps(told).decode()
    text = words.strip() if isinstance(words, str) else orjson.dumps(words).decode()
    if secret:
        text = text.replace(secret, "[key]")
    return f": {text[:LONGEST_QUOTE]}" if text else "."


def _code(details: Mapping[str, Any], message: str) -> str | None:
    code = details.get("code")
    if any(phrase in message for phrase in TOO_LONG):
        return "context_length_exceeded"
    return code if isinstance(code, str) and not code.isdigit() else None


def _status_of(error: object) -> int:
    if not isinstance(error, dict):
        return 500
    for name in ("code", "status", "status_code", "type"):
        word = str(error.get(name)).lower()
        if word.isdecimal() and len(word) == 3 and word[0] in "45":
            return int(word)
        if word in STATUS_OF_WORD:
            return STATUS_OF_WORD[word]
    return 500


def _pause(headers: Mapping[str, str]) -> timedelta | None:
    """How long it asks us to wait: milliseconds, seconds, or an HTTP date by its own clock."""
    seconds = _number(headers.get("retry-after-ms"), 1000)
    if seconds is None:
        seconds = _number(headers.get("retry-after"), 1)
    if seconds is None and (moment := _moment(headers.get("retry-after"))) is not None:
        # Its `Date` says what time it thinks it is: our clocks need not agree.
        seconds = moment - (_moment(headers.get("date")) or time.time())
    if seconds is None or seconds != seconds:
        return None
    return timedelta(seconds=min(max(seconds, 0.0), LONGEST_PAUSE))


def _number(text: str | None, unit: int) -> float | None:
    try:
        return float(text or "") / unit
    except ValueError:
        return None


def _moment(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError):
        return None
