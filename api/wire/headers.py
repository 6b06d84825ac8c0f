"""What a request says about itself in headers: how it is recognised again, when it is to stop."""

import hashlib
import re
from typing import Any, Final

import orjson
from fastapi import Request
from starlette.datastructures import Headers

from shared.errors import InvalidRequest
from shared.idempotency import Sent

LONGEST_KEY: Final = 255
RETRY_COUNT: Final = "x-stainless-retry-count"
"""OpenAI's SDKs count here how often they have sent this very request before."""
SPAN: Final = re.compile(r"([0-9]{1,9})([smhd]?)")
SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
NDJSON: Final = "application/x-ndjson"
LONGEST_SPAN: Final = 30 * 86400


def parse_sent(request: Request, raw: Any) -> Sent | None:
    """How this request is recognised when it comes again; None when it could not be.

    Raises `InvalidRequest` for an `Idempotency-Key` that is empty, too long or not plain text.
    """
    key, count = request.headers.get("idempotency-key"), request.headers.get(RETRY_COUNT)
    if key is None and count is None:
        return None
    if key is not None and not (1 <= len(key) <= LONGEST_KEY and _is_plain(key)):
        raise InvalidRequest(
            f"Invalid 'Idempotency-Key': should be 1 to {LONGEST_KEY} printable ASCII characters.",
            param="Idempotency-Key",
        )
    canonical = orjson.dumps(raw, option=orjson.OPT_SORT_KEYS)
    return Sent(
        scope=f"{request.method} {request.url.path}",
        fingerprint=hashlib.sha256(canonical).digest(),
        key=key,
        by_sdk=count is not None,
        retried=_retried(count),
    )


def may_repeat(headers: Headers) -> bool:
    """Whether a request may have come before, by its own word."""
    return "idempotency-key" in headers or _retried(headers.get(RETRY_COUNT))


def is_ndjson(content_type: str | None) -> bool:
    """Whether a body is lines of JSON by its own word."""
    return (content_type or "").partition(";")[0].strip().lower() == NDJSON


def parse_cancel_after(value: str | None) -> int | None:
    """Milliseconds from `Cancel-After: 90`, `90s`, `5m`, `2h` or `1d`; raises `InvalidRequest`."""
    if value is None:
        return None
    found = SPAN.fullmatch(value.strip())
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 1 <= seconds <= LONGEST_SPAN:
        raise InvalidRequest(
            "Invalid 'Cancel-After': should be a span of 1 second to 30 days, such as 90s or 5m.",
            param="Cancel-After",
        )
    return seconds * 1000


def _retried(count: str | None) -> bool:
    return bool(count and count.isdecimal() and count.strip("0"))


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


HEADERS: Final = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
    }
    for name, description in (
        ("Idempotency-Key", "Sent again with this key, the same request leads to the same job."),
        ("Cancel-After", "Stop the job after this span, wherever it is: `90`, `90s`, `5m`, `2h`."),
        ("Prefer", "`respond-async` answers 202 at once, `wait=20` holds for so many seconds."),
    )
]
"""The `parameters` in the OpenAPI document of routes that read them."""
IDEMPOTENCY: Final = HEADERS[:1]
"""Those of a route that only wants to recognise a request."""
