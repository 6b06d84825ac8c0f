"""Requests that must be refused: one table for the wire shapes alone and for the whole service."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.unit.malformed_chat import OK, message, messages, ranges, tools, with_

SOME_ID = "0" * 26
JSON = {"content-type": "application/json"}
BAD = "invalid_request_error"


@dataclass(frozen=True)
class Malformed:
    """A request, and how it must be refused."""

    name: str
    param: str | None = None
    body: Any = None
    """A JSON value, bytes as they are, or a function that makes the bytes; None for no body."""
    status: int = 400
    code: str = BAD
    method: str = "POST"
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    needs_service: bool = False
    """Refused by the catalogue, the routes or the server, not by the shape of the request."""

    def content(self) -> bytes:
        """The body's bytes; a lone surrogate leaves as its escape."""
        if self.body is None:
            return b""
        body = self.body() if callable(self.body) else self.body
        return body if isinstance(body, bytes) else json.dumps(body).encode()


def nested(depth: int) -> bytes:
    """A request `depth` levels deep, in a field we do not know."""
    return b'{"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def nine_megabytes() -> bytes:
    """A body over the size limit."""
    return json.dumps(message(role="user", content="x" * 9 * 1024 * 1024)).encode()


def bodies() -> Iterator[Malformed]:
    """Bodies that are no JSON, or not what the service reads."""
    yield Malformed("empty body")
    yield Malformed("broken JSON", body=b'{"model": "m", "messages": [')
    yield Malformed("single quotes", body=b"{'model': 'm'}")
    yield Malformed("something after the JSON", body=b'{"model": "m"} true')
    yield Malformed("byte order mark", body=b"\xef\xbb\xbf{}")
    yield Malformed("bad UTF-8", body=b'{"model": "\xff\xfe"}')
    yield Malformed("surrogates in UTF-8", body=b'{"model": "\xed\xa0\x80"}')
    yield Malformed("lone surrogate escape", body=message(role="user", content="\ud800"))
    yield Malformed("reversed surrogate pair", body=message(role="user", content="\udc00\ud800"))
    yield Malformed("NaN", body=with_(temperature=float("nan")))
    yield Malformed("Infinity", body=with_(temperature=float("inf")))
    yield Malformed("number beyond a double", body=b'{"model": "m", "seed": 1e400}')
    yield Malformed("array", body=[OK])
    yield Malformed("string", body="hello")
    yield Malformed("null", body=b"null")
    yield Malformed("nested 100 deep", body=nested(100))
    yield Malformed("nested 5,000 deep", body=nested(5_000))
    yield Malformed("never closed, 100,000 deep", body=b"[" * 100_000)
    for name, headers in {
        "no content type": {},
        "form": {"content-type": "application/x-www-form-urlencoded"},
        "plain text": {"content-type": "text/plain; charset=utf-8"},
        "almost JSON": {"content-type": "application/jsonp"},
        "JSON of another family": {"content-type": "text/json"},
    }.items():
        yield Malformed(name, body=OK, headers=headers, status=415, code="unsupported_media_type")


def jobs() -> Iterator[Malformed]:
    """Submissions to the native view."""
    for key, value, param in [
        ("run_at", "tomorrow", "run_at"),
        ("run_at", -1, "run_at"),
        ("run_at", 1.5, "run_at"),
        ("run_at", True, "run_at"),
        ("run_at", 1_900_000_000_000, "run_at"),
        ("run_at", 9_000_000_000, "run_at"),
        ("expires_at", "never", "expires_at"),
        ("expires_at", 0, "expires_at"),
        ("lane", "fast", "lane"),
        ("max_attempts", 0, "max_attempts"),
        ("max_attempts", 11, "max_attempts"),
        ("webhook", "https://example.com", "webhook"),
        ("webhook", {}, "webhook.url"),
        ("webhook", {"url": "ftp://example.com"}, "webhook.url"),
        ("webhook", {"url": "https://"}, "webhook.url"),
        ("webhook", {"url": "https://user:secret@example.com"}, "webhook.url"),
        ("webhook", {"url": "https://[::1"}, "webhook.url"),
        ("webhook", {"url": "https://example.com/" + "a" * 2048}, "webhook.url"),
        ("webhook", {"url": "https://example.com", "evnts": []}, "webhook.evnts"),
        ("webhook", {"url": "https://example.com", "events": ["all"]}, "webhook.events[0]"),
    ]:
        name = f"{key} is {str(value)[:60]}"
        yield Malformed(name, param, with_(**{key: value}), path="/v1/jobs")
    late = with_(run_at=1_000_000_000, expires_at=999_999_999)
    yield Malformed("expires before it runs", "expires_at", late, path="/v1/jobs")
    yield Malformed("no jobs", body=[], path="/v1/jobs")
    yield Malformed("1,001 jobs", body=[OK] * 1_001, path="/v1/jobs")
    yield Malformed("job is a number", "[0]", [5], path="/v1/jobs")
    yield Malformed("streaming array", "[1].stream", [OK, with_(stream=True)], path="/v1/jobs")
    yield Malformed(
        "fault in the fourth job",
        "[3].messages[0].content",
        [OK, OK, OK, message(role="user")],
        path="/v1/jobs",
    )


def queries() -> Iterator[Malformed]:
    """Lists with filters and cursors that mean nothing."""
    for query, param in {
        "limit=0": "limit",
        "limit=101": "limit",
        "limit=ten": "limit",
        "limit=1&limit=2": "limit",
        "order=up": "order",
        "after=nope": "after",
        "after=%00": "after",
        "colour=red": "colour",
        "metadata=k": "metadata",
        "metadata[k]=%00": "metadata.k",
        "status=done": "status",
        "model=": "model",
    }.items():
        for path in ("/v1/jobs", "/v1/chat/completions"):
            yield Malformed(
                f"{path}?{query}", param, method="GET", path=f"{path}?{query}", headers={}
            )
    for query, param in {
        "batch_id=nope": "batch_id",
        "created_after=yesterday": "created_after",
        "created_before=-1": "created_before",
        "created_before=" + "9" * 30: "created_before",
    }.items():
        yield Malformed(query, param, method="GET", path=f"/v1/jobs?{query}", headers={})


def service() -> Iterator[Malformed]:
    """What only the running service can know."""

    def missing(method: str, path: str, code: str = "not_found", status: int = 404) -> Malformed:
        return Malformed(
            f"{method} {path}",
            None,
            method=method,
            path=path,
            headers={},
            status=status,
            code=code,
            needs_service=True,
        )

    yield Malformed(
        "unknown model", "model", with_(model="no-such-model"), 404, "model_not_found",
        needs_service=True,
    )  # fmt: skip
    yield Malformed(
        "unknown model of a job", "[1].model", [OK, with_(model="no-such-model")], 404,
        "model_not_found", path="/v1/jobs", needs_service=True,
    )  # fmt: skip
    yield Malformed("9 MB", None, nine_megabytes, 413, "request_too_large", needs_service=True)
    for number in ("nope", f"chatcmpl-{SOME_ID}", f"job_{SOME_ID[1:]}", "%00", "chatcmpl-"):
        yield missing("GET", f"/v1/chat/completions/{number}")
        yield missing("POST", f"/v1/chat/completions/{number}/cancel")
        yield missing("GET", f"/v1/jobs/{number}")
        yield missing("GET", f"/v1/jobs/{number}/events")
    yield missing("GET", "/v1/chat/completions/nope/messages")
    yield missing("DELETE", "/v1/chat/completions/nope")
    yield missing("GET", "/v1/jobs/nope/attempts")
    yield missing("GET", "/v1/nothing")
    yield missing("PUT", "/v1/chat/completions", "method_not_allowed", 405)


MALFORMED: list[Malformed] = [
    *bodies(),
    *(Malformed(name, param, body) for name, param, body in (*messages(), *ranges(), *tools())),
    *jobs(),
    *queries(),
    *service(),
]
