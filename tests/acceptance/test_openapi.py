"""Requests by the hundred, made from our own OpenAPI document: no 500, nothing undocumented."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlmodel import Session

from api.app import create_app
from api.settings import ApiSettings
from shared import db, keys
from tests.conftest import parts
from tests.stack import Stack

ANSWERS_WITHIN = 30.0
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""Not that all the document allows is accepted: it outlines bodies, and OpenAI's own says more."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running service that holds no connection for long."""
    with parts(tmp_path_factory.mktemp("service")) as opened:
        opened.environment["SLUICE_HOLD_LIMIT"] = "1"
        yield opened.up()


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    """A key that may do everything."""
    engine = db.connect(stack.database_url)
    with Session(engine) as session, session.begin():
        _, text = keys.create(session, account="all", scopes=["completions", "admin"])
    engine.dispose()
    return text


schemathesis.serializer.alias("application/x-ndjson", "text/plain")
document = schemathesis.openapi.from_dict(create_app(ApiSettings()).openapi())


@document.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_is_answered_as_described(case: Any, stack: Stack, key: str) -> None:
    """A success has a status and a shape of the document; a refusal is ours, and no 500."""
    if isinstance(case.body, dict) and "messages" in case.body:
        case.body["model"] = "test"  # one that exists, so that more than this is looked at
    ours = {"authorization": f"Bearer {key}"}
    response = case.call(base_url=stack.url, headers=ours, timeout=ANSWERS_WITHIN)

    known = case.operation.definition.raw["responses"]
    if response.status_code < 400:
        assert str(response.status_code) in known, response.status_code
    else:
        assert response.status_code != 500, response.text
        error = response.json()["error"]
        assert {"message", "type", "param", "code"} <= set(error), error
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize(
    "body, headers, status, kind",
    [
        ({}, {}, 200, "application/json"),
        ({"stream": True}, {}, 200, "text/event-stream"),
        ({"background": True}, {}, 202, "application/json"),
        ({}, {"prefer": "respond-async"}, 202, "application/json"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/public/chat/completions"])
def test_each_form_of_an_answer_is_described(
    stack: Stack, path: str, body: dict[str, Any], headers: dict[str, str], status: int, kind: str
) -> None:
    """What chance may not hit upon."""
    asked = {"model": "test", "messages": [{"role": "user", "content": "Hi"}], **body}
    answer = stack.http().post(path, json=asked, headers=headers)

    known = document.raw_schema["paths"][path]["post"]["responses"]
    assert answer.status_code == status
    assert kind in known[str(status)]["content"]
    assert answer.headers["content-type"].startswith(kind)
