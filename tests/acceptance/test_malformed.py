"""Bad requests over HTTP: the right refusal, never a 500, and the queue as it was before."""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlmodel import Session

from shared import db
from tests.fakes.upstream import Say
from tests.stack import Stack, eventually
from tests.unit.malformed import MALFORMED, Malformed
from tests.unit.malformed_chat import MODEL

KEYS = {"message", "type", "param", "code"}
GOOD = {"model": "test", "messages": [{"role": "user", "content": "Hello"}]}
JSON = {"content-type": "application/json"}


def content(row: Malformed) -> bytes:
    """The row's body, for a model that this service has."""
    return row.content().replace(f'"{MODEL}"'.encode(), b'"test"')


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The error of a refusal; every refusal has the same shape."""
    body = response.json()
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert set(error) >= KEYS, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["content-type"] == "application/json"
    return error


def queue(service: Stack) -> list[tuple[Any, ...]]:
    """Every job there is, as the database has it."""
    engine = db.connect(service.database_url)
    with Session(engine) as session:
        rows = session.connection().execute(
            text("SELECT id, status, attempt FROM jobs ORDER BY id")
        )
        found = [tuple(row) for row in rows]
    engine.dispose()
    return found


@contextmanager
def undisturbed(service: Stack) -> Iterator[httpx.Client]:
    """Whatever is sent meanwhile makes no job, and a good request is answered afterwards."""
    with service.http() as http:
        listed, before = http.get("/v1/jobs").json(), queue(service)
        yield http
        assert queue(service) == before
        assert http.get("/v1/jobs").json() == listed
        service.upstream.script("test", Say("Here I am."))
        answer = http.post("/v1/chat/completions", json=GOOD)
        assert answer.json()["choices"][0]["message"]["content"] == "Here I am."


def test_every_malformed_request_is_refused(service: Stack) -> None:
    """With the status, the code and the field that the table names."""
    wrong = []
    with undisturbed(service) as http:
        for row in MALFORMED:
            response = http.request(
                row.method, row.path, content=content(row), headers=dict(row.headers)
            )
            error = refusal(response)
            found = (response.status_code, error["code"], error["param"])
            if found != (row.status, row.code, row.param):
                wrong.append((row.name, found, error["message"]))

    assert len(MALFORMED) >= 40
    assert wrong == []


def test_a_bad_request_without_a_key_is_refused_for_the_key(service: Stack) -> None:
    """Nobody learns what is wrong with a request, or what there is, before saying who asks."""
    with httpx.Client(base_url=service.url) as http:
        for row in MALFORMED:
            if row.path.startswith("/v1/nothing") or row.status == 405:
                continue
            response = http.request(
                row.method, row.path, content=content(row)[:10_000], headers=dict(row.headers)
            )
            error = refusal(response)
            assert (response.status_code, error["code"]) == (401, "invalid_api_key"), row.name
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("size, status", [(9, 413), (20, 413), (7, 200)])
def test_a_body_over_8_megabytes_is_too_large(service: Stack, size: int, status: int) -> None:
    """Whether its length is announced or it comes in chunks."""
    good = json.dumps({**GOOD, "max_tokens": 1}).encode()
    body = good[:-1] + b" " * (size * 1024 * 1024) + b"}"
    service.upstream.script("test", Say("Here I am."))
    with service.http() as http:
        for sent in (body, iter([body[: len(body) // 2], body[len(body) // 2 :]])):
            response = http.post("/v1/chat/completions", content=sent, headers=JSON)

            assert response.status_code == status
            if status == 413:
                assert refusal(response)["code"] == "request_too_large"


def test_a_compressed_body_is_refused(service: Stack) -> None:
    """We do not unpack what could grow a thousandfold."""
    with undisturbed(service) as http:
        for coding in ("gzip", "br"):
            response = http.post(
                "/v1/chat/completions",
                content=gzip.compress(json.dumps(GOOD).encode()),
                headers={**JSON, "content-encoding": coding},
            )
            error = refusal(response)
            assert (response.status_code, error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "path, allowed",
    [
        ("/v1/chat/completions", {"GET", "POST"}),
        ("/v1/public/chat/completions", {"POST"}),
        (f"/v1/chat/completions/{'0' * 26}", {"GET", "POST", "DELETE"}),
        (f"/v1/chat/completions/{'0' * 26}/cancel", {"POST"}),
        ("/v1/jobs", {"GET", "POST"}),
        (f"/v1/jobs/{'0' * 26}", {"GET"}),
        (f"/v1/jobs/{'0' * 26}/cancel", {"POST"}),
        ("/v1/models", {"GET"}),
        ("/health/live", {"GET"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    service: Stack, path: str, allowed: set[str]
) -> None:
    """405 and `Allow`, which names those of all routes at that path."""
    with undisturbed(service) as http:
        for method in {"PUT", "PATCH", "DELETE", "OPTIONS", "POST", "GET"} - allowed:
            response = http.request(method, path)

            assert response.status_code == 405, method
            assert refusal(response)["code"] == "method_not_allowed"
            assert set(response.headers["allow"].replace(" ", "").split(",")) == allowed


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v2/jobs", "/v1/jobs/", "/v1/jobs//cancel", "/v1/responses"]
)
def test_there_is_nothing_at_an_unknown_path(service: Stack, path: str) -> None:
    """404 in the same envelope, whatever the method; nobody is sent elsewhere."""
    with service.http() as http:
        for method in ("GET", "POST", "DELETE"):
            response = http.request(method, path)

            assert response.status_code == 404
            assert refusal(response)["code"] == "not_found"


def test_head_is_answered_without_a_body(service: Stack) -> None:
    """Whatever its status, the connection can be used on."""
    with service.http() as http:
        for path in ("/health/live", "/v1/jobs", "/v1/nothing"):
            response = http.head(path)

            assert response.content == b""
            assert response.headers["x-request-id"]
            assert http.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /nowhere?\xff HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /v1/jobs?\xff=\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ],
)
def test_what_is_no_http_ends_its_connection_only(service: Stack, said: bytes) -> None:
    """400 or nothing, then the end; others do not notice."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as raw:
        raw.sendall(said)
        raw.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := raw.recv(4096):
            answer += piece

    assert b" 500 " not in answer
    with service.http() as http:
        assert http.get("/health/live").status_code == 200


def test_a_client_that_hangs_up_while_it_sends_is_no_fault_of_ours(service: Stack) -> None:
    """No job is made, and the log has no traceback for it."""
    with undisturbed(service) as http:
        head = (
            f"POST /v1/jobs?gone HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
            "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as raw:
            raw.sendall(head.encode())
        log = next(service.home.glob("api-*.log"))
        asked = http.get("/v1/jobs").headers["x-request-id"]

        text = eventually(lambda: said if asked in (said := log.read_text()) else None)
        assert "Traceback" not in text
        assert '"request_broke"' not in text
