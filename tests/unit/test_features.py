"""What a request uses, and how many tokens it has at least."""

from typing import Any

import pytest

from shared import features, prices
from workers.upstreams.anthropic_request import UNSUPPORTED

PICTURE = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
TOOL = {"type": "function", "function": {"name": "f"}}
ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody knows why it ever did so. "


def asked(content: Any, **fields: Any) -> dict[str, Any]:
    """A request with one message."""
    return {"messages": [{"role": "user", "content": content}], **fields}


@pytest.mark.parametrize(
    "request_body, used",
    [
        (asked("Hi"), {}),
        (asked("Hi", tools=[], n=1, seed=None, logprobs=False, presence_penalty=0.0), {}),
        (asked("Hi", modalities=["text"], response_format={"type": "text"}), {}),
        (asked("Hi", tools=[TOOL]), {"tools": "tools"}),
        (asked("Hi", functions=[{"name": "f"}]), {"tools": "functions"}),
        (
            asked("Hi", tools=[{"type": "custom", "custom": {"name": "f"}}]),
            {"tools": "tools", "custom_tools": "tools"},
        ),
        (asked([{"type": "text", "text": "a"}, PICTURE]), {"vision": "messages"}),
        (asked([{"type": "input_audio", "input_audio": {}}]), {"audio": "messages"}),
        (asked([{"type": "file", "file": {}}]), {"files": "messages"}),
        (asked("Hi", audio={"voice": "v"}), {"audio": "audio"}),
        (
            asked("Hi", response_format={"type": "json_schema", "json_schema": {}}),
            {"json_schema": "response_format"},
        ),
        (
            asked("Hi", response_format={"type": "json_object"}),
            {"json_object": "response_format"},
        ),
        (asked("Hi", seed=0, n=2), {"seed": "seed", "n": "n"}),
        (asked("Hi", frequency_penalty=0.5), {"penalties": "frequency_penalty"}),
        (
            {"messages": [{"role": "tool", "tool_call_id": "1", "content": "a"}]},
            {"tools": "messages"},
        ),
    ],
)
def test_a_request_uses_what_it_asks_for(
    request_body: dict[str, Any], used: dict[str, str]
) -> None:
    """Each with the field to blame; a value that asks for nothing does not count."""
    assert features.used(request_body) == used


STEERED = {
    "seed": 7,
    "logprobs": True,
    "top_logprobs": 2,
    "frequency_penalty": 0.5,
    "temperature": 0.5,
}


def test_what_only_steers_an_answer_may_be_left_out() -> None:
    """When the request says so, and only of a model that lacks it."""
    request = asked("Hi", **STEERED, top_p=0.5, drop_unsupported=True)
    lacks: list[features.Feature] = ["seed", "logprobs", "penalties", "temperature", "prediction"]
    left_out = features.unsupported(request, lacks)

    assert features.used(request) == {}
    assert set(left_out) == STEERED.keys()
    assert features.without(request, left_out) == asked("Hi", top_p=0.5)
    assert features.without(request, []) == asked("Hi", **STEERED, top_p=0.5)


@pytest.mark.parametrize("said", [{}, {"drop_unsupported": False}, {"drop_unsupported": None}])
def test_nothing_is_left_out_unasked(said: dict[str, Any]) -> None:
    """What a model lacks is then refused by name."""
    request = asked("Hi", seed=7, **said)

    assert features.used(request) == {"seed": "seed"}
    assert features.unsupported(request, ["seed"]) == []


def test_what_was_filled_in_for_the_caller_is_left_out_unasked() -> None:
    """A default asks for nothing; what the caller wrote does."""
    request = asked("Hi", temperature=0.7, seed=7, drop_unsupported=["temperature"])

    assert features.used(request) == {"seed": "seed"}
    assert features.unsupported(request, ["temperature", "seed"]) == ["temperature"]
    assert features.without(request, ["temperature"]) == asked("Hi", seed=7)


def test_what_is_said_or_has_a_form_is_never_left_out() -> None:
    """A picture, a tool, a schema, a number of answers: it would be another request."""
    schema = {"type": "json_schema", "json_schema": {}}
    request = asked(
        [PICTURE], tools=[TOOL], response_format=schema, n=2, seed=7, drop_unsupported=True
    )
    needed: list[features.Feature] = ["vision", "tools", "json_schema", "n"]

    assert features.used(request).keys() == set(needed)
    assert features.unsupported(request, needed) == []


def test_what_anthropic_has_not_can_be_told_from_the_request() -> None:
    """Else a job would fall back to it only to be refused there."""
    values: dict[str, Any] = {"n": 2, "modalities": ["audio"], "function_call": "auto"}
    untold = {
        field
        for field in UNSUPPORTED
        if not features.used(asked("Hi", **{field: values.get(field, "x")}))
    }

    # These come only beside a field that tells, or only mention the answer's safety.
    assert untold == {"function_call", "modalities", "moderation"}


@pytest.mark.parametrize(
    "text, tokens_in_truth",
    [
        (ENGLISH * 100, 1_900),
        ("नमस्ते, मेरा नाम मॉडल है और मैं आपकी मदद करूँगा। " * 100, 1_500),
        ("你好，我是一个新型的语言模型。" * 100, 1_000),
        ("    " * 5_000 + "x", 60),
        ("=" * 10_000, 150),
    ],
)
def test_a_prompt_is_never_taken_for_longer_than_it_is(text: str, tokens_in_truth: int) -> None:
    """Whatever the language; a run of one character may be few tokens."""
    parts = [{"type": "text", "text": text}, PICTURE]

    for content in (text, parts):
        assert prices.least_prompt_tokens(asked(content), room=100) <= tokens_in_truth


def test_a_prompt_far_beyond_the_window_is_seen() -> None:
    """It would be refused by the upstream, after it had waited its turn."""
    assert prices.least_prompt_tokens(asked(ENGLISH * 10_000), room=8_192) > 100_000
