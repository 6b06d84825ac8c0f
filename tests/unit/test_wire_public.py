"""The AINative dialect on its way to the upstream: OpenAI's spelling, its own defaults."""

import copy
from typing import Any

import pytest

from api.parse import validate
from api.wire.public import PublicCompletionRequest
from tests.unit.malformed_chat import OK, SAID, with_
from tests.unit.well_formed import WELL_FORMED

FILLED_IN = {"temperature": 0.7, "drop_unsupported": ["temperature"]}
DEFAULTS = {**FILLED_IN, "max_tokens": 1024}


def upstream_body(body: dict[str, Any]) -> dict[str, Any]:
    """What the upstream gets of this body."""
    return validate(PublicCompletionRequest, body).upstream_body(body)


@pytest.mark.parametrize(
    "asked, sent",
    [
        ({}, DEFAULTS),
        ({"temperature": None, "max_tokens": None, "system": None}, DEFAULTS),
        ({"temperature": 0, "max_tokens": 1}, {"temperature": 0, "max_tokens": 1}),
        ({"max_completion_tokens": 9}, {**FILLED_IN, "max_completion_tokens": 9}),
        ({"drop_unsupported": True}, {**DEFAULTS, "drop_unsupported": True}),
        ({"system": ""}, DEFAULTS),
        (
            {"system": "Hush."},
            {**DEFAULTS, "messages": [{"role": "system", "content": "Hush."}, *SAID]},
        ),
    ],
)
def test_what_is_not_said_has_a_default(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    """Null is as good as absent, and an empty system prompt says nothing."""
    assert upstream_body(with_(**asked)) == {**OK, **sent}


@pytest.mark.parametrize("body", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_what_openai_allows_is_allowed_here_too(body: dict[str, Any]) -> None:
    """With everything as it was sent, and nothing done to the caller's JSON."""
    asked = {**body, "system": "Be brief."}
    sent = copy.deepcopy(asked)

    passed = upstream_body(asked)

    assert asked == sent
    assert passed["messages"][1:] == body["messages"]
    assert "system" not in passed
