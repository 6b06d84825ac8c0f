"""OpenAI's requests as Anthropic's: each part at its place, and what has none refused by name."""

import base64
import hashlib
from typing import Any

import pytest

from shared.errors import UpstreamRejected
from workers.upstreams.anthropic_request import generation, messages_request

HELLO: dict[str, Any] = {"role": "user", "content": "Hello"}
LOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
    },
}
SUM: dict[str, Any] = {"type": "function", "function": {"name": "sum"}}
PDF = base64.b64encode(b"%PDF-1.7").decode()


def translated(
    *messages: dict[str, Any],
    model: str = "claude-sonnet-4-5",
    limit: int | None = 8_000,
    **more: Any,
) -> dict[str, Any]:
    """The body for these messages, or for a plain greeting."""
    request = {"model": "ours", "messages": list(messages) or [HELLO], **more}
    return messages_request(request, model=model, max_output_tokens=limit)


def refusal(*messages: dict[str, Any], **more: Any) -> UpstreamRejected:
    """The refusal of this request."""
    with pytest.raises(UpstreamRejected) as refused:
        translated(*messages, **more)
    return refused.value


def called(*ids: str) -> dict[str, Any]:
    """An assistant's message that calls a tool."""
    function = {"name": "look", "arguments": '{"where": "here"}'}
    calls = [{"id": one, "type": "function", "function": function} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def used(id: str) -> dict[str, Any]:
    """The same call as a block."""
    return {"type": "tool_use", "id": id, "name": "look", "input": {"where": "here"}}


def text(said: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": said}


def asking(*parts: dict[str, Any]) -> dict[str, Any]:
    """A user's message of parts."""
    return {"role": "user", "content": list(parts)}


# The conversation.


def test_a_plain_request_is_as_small_there() -> None:
    """Nothing is sent that was not asked for, but the limit an answer must have."""
    assert translated() == {
        "model": "claude-sonnet-4-5",
        "max_tokens": 8_000,
        "messages": [{"role": "user", "content": [text("Hello")]}],
        "stream": True,
    }


def test_instructions_are_lifted_out_of_the_conversation() -> None:
    """From wherever they stand, in their order; the turns around them become one."""
    body = translated(
        {"role": "system", "content": "Be kind."},
        HELLO,
        {"role": "developer", "content": [text("Be brief.")]},
        {"role": "user", "content": "Well?"},
    )

    assert body["system"] == [text("Be kind."), text("Be brief.")]
    assert body["messages"] == [{"role": "user", "content": [text("Hello"), text("Well?")]}]


def test_results_of_tools_come_together_first_in_the_users_turn() -> None:
    """Each beside its call, whatever the user said between them."""
    body = translated(
        HELLO,
        called("a", "b"),
        {"role": "tool", "tool_call_id": "a", "content": "Sun"},
        {"role": "user", "content": "And?"},
        {"role": "tool", "tool_call_id": "b", "content": "", "is_error": True, "name": "look"},
    )

    assert body["messages"][1:] == [
        {"role": "assistant", "content": [used("a"), used("b")]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [text("Sun")]},
                {"type": "tool_result", "tool_use_id": "b", "is_error": True},
                text("And?"),
            ],
        },
    ]


def test_thoughts_go_back_as_they_came_before_words_and_calls() -> None:
    """Signed, redacted, or empty; the readable copy of them stays here."""
    thoughts = [
        {"type": "thinking", "thinking": "", "signature": "c2lnbmVk"},
        {"type": "redacted_thinking", "data": "ZW5j"},
    ]
    said = {"content": "Let me see.", "reasoning_content": "Hm.", "thinking_blocks": thoughts}

    body = translated(HELLO, called("a") | said)

    assert body["messages"][1]["content"] == [*thoughts, text("Let me see."), used("a")]


def test_what_is_empty_is_left_out() -> None:
    """There an empty text is an error; a refusal of the past is text."""
    body = translated(
        asking(text(""), text("Hello")),
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": "Why?"},
    )

    assert [turn["content"] for turn in body["messages"]] == [
        [text("Hello")],
        [text("No.")],
        [text("Why?")],
    ]


@pytest.mark.parametrize(
    "part, block",
    [
        (
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
            },
        ),
        (
            {
                "type": "file",
                "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"},
                "citations": {"enabled": True},
            },
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
                "title": "a.pdf",
                "citations": {"enabled": True},
            },
        ),
        (
            {"type": "file", "file": {"file_data": PDF}},
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            },
        ),
        (
            {"type": "file", "file": {"file_data": "data:text/plain;base64,SMOkbGxv"}},
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "Hällo"},
            },
        ),
        (
            text("a") | {"cache_control": {"type": "ephemeral"}},
            text("a") | {"cache_control": {"type": "ephemeral"}},
        ),
        (
            text("a") | {"prompt_cache_breakpoint": {"mode": "explicit"}},
            text("a") | {"cache_control": {"type": "ephemeral"}},
        ),
        (
            text("a") | {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}},
            text("a") | {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ),
    ],
)
def test_what_a_user_shows_becomes_a_block(part: dict[str, Any], block: dict[str, Any]) -> None:
    """Images, PDFs, texts, with the marks of a cache."""
    assert translated(asking(part))["messages"][0]["content"] == [block]


def test_a_message_may_carry_a_mark_of_the_cache() -> None:
    """It stands after the last block; instructions and tools may have one too."""
    mark = {"cache_control": {"type": "ephemeral"}}

    body = translated({"role": "system", "content": "Be kind."} | mark, HELLO, tools=[SUM | mark])

    assert body["system"] == [text("Be kind.") | mark]
    assert body["tools"][0]["cache_control"] == mark["cache_control"]


# The options.


@pytest.mark.parametrize(
    "asked, fields",
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 9_000}, {"max_tokens": 8_000}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"temperature": 1.7}, {"temperature": 1}),
        ({"top_p": 0.5, "top_k": 40}, {"top_p": 0.5, "top_k": 40}),
        ({"user": "me"}, {"metadata": {"user_id": hashlib.sha256(b"me").hexdigest()}}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"cache_control": {"type": "ephemeral"}}, {"cache_control": {"type": "ephemeral"}}),
        ({"of_next_year": [1]}, {"of_next_year": [1]}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {}},
                }
            },
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
        ),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ({"n": 1, "presence_penalty": 0.0, "logprobs": False, "logit_bias": {}}, {}),
        ({"seed": None, "modalities": ["text"], "prompt_cache_key": "a"}, {}),
        ({"stream": False, "stream_options": {"include_obfuscation": False}}, {}),
    ],
)
def test_an_option_is_said_as_it_is_called_there(
    asked: dict[str, Any], fields: dict[str, Any]
) -> None:
    """What asks for nothing is left out; what neither OpenAI nor we know passes as it is."""
    assert translated(**asked) == translated() | fields


@pytest.mark.parametrize(
    "model, effort, fields",
    [
        ("claude-3-5-haiku-20241022", "none", {}),
        ("claude-sonnet-4-5", "none", {"thinking": {"type": "disabled"}}),
        ("claude-sonnet-4-5", "minimal", {"thinking": {"type": "enabled", "budget_tokens": 1_024}}),
        ("claude-sonnet-4-5", "low", {"thinking": {"type": "enabled", "budget_tokens": 2_048}}),
        ("claude-sonnet-4-5", "max", {"thinking": {"type": "enabled", "budget_tokens": 7_999}}),
        (
            "claude-opus-4-6",
            "minimal",
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ),
        (
            "of-next-year",
            "xhigh",
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}},
        ),
    ],
)
def test_effort_is_a_budget_for_older_models_and_a_word_for_newer(
    model: str, effort: str, fields: dict[str, Any]
) -> None:
    """A budget leaves room for the answer."""
    assert translated(model=model, reasoning_effort=effort) == translated(model=model) | fields


@pytest.mark.parametrize(
    "asked, choice",
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "sum"}}},
            {"type": "tool", "name": "sum"},
        ),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"parallel_tool_calls": False, "tool_choice": "required"},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_tools_and_the_choice_among_them(
    asked: dict[str, Any], choice: dict[str, Any] | None
) -> None:
    """A function without parameters takes an empty object; the choice is absent unless made."""
    body = translated(tools=[LOOK, SUM], **asked)

    assert body["tools"] == [
        {
            "name": "look",
            "description": "Look.",
            "input_schema": {"type": "object", "properties": {"where": {"type": "string"}}},
        },
        {"name": "sum", "input_schema": {"type": "object", "properties": {}}},
    ]
    assert body.get("tool_choice") == choice


def test_only_allowed_tools_are_offered() -> None:
    """The choice among fewer is the choice of fewer."""
    named = [{"type": "function", "function": {"name": "sum"}}]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}

    body = translated(tools=[LOOK, SUM], tool_choice=allowed)

    assert [tool["name"] for tool in body["tools"]] == ["sum"]
    assert body["tool_choice"] == {"type": "any"}


# What it cannot do.


@pytest.mark.parametrize(
    "asked, param",
    [
        ({"n": 2}, "n"),
        ({"seed": 0}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": -0.1}, "frequency_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stop": ["END", "\n"]}, "stop"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [SUM, {"type": "custom", "custom": {"name": "c"}}]}, "tools[1]"),
        ({"reasoning_effort": "low", "max_tokens": 1_024}, "reasoning_effort"),
        ({"reasoning_effort": "low", "model": "claude-3-opus-20240229"}, "reasoning_effort"),
    ],
)
def test_what_anthropic_cannot_do_is_refused_by_name(asked: dict[str, Any], param: str) -> None:
    """Nothing the answer depends on is dropped in silence; trying again cannot help."""
    refused = refusal(**asked)

    assert (refused.status, refused.code, refused.param) == (400, "unsupported_parameter", param)
    assert f"'{param}'" in refused.message
    assert not refused.retryable


@pytest.mark.parametrize(
    "message, param",
    [
        (HELLO | {"name": "Ann"}, "messages[1].name"),
        (asking(text("a"), {"type": "input_audio"}), "messages[1].content[1]"),
        (
            asking({"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}),
            "messages[1].content[0].image_url.url",
        ),
        (
            asking({"type": "file", "file": {"file_id": "file-1"}}),
            "messages[1].content[0].file.file_id",
        ),
        (
            asking({"type": "file", "file": {"file_data": "data:image/png;base64,AAAA"}}),
            "messages[1].content[0].file.file_data",
        ),
        ({"role": "function", "name": "f", "content": "a"}, "messages[1].role"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom", "id": "a", "custom": {}}]},
            "messages[1].tool_calls[0]",
        ),
    ],
)
def test_what_a_message_cannot_hold_is_refused_with_its_place(
    message: dict[str, Any], param: str
) -> None:
    """The path leads to the part at fault."""
    refused = refusal(HELLO, message)

    assert (refused.code, refused.param) == ("unsupported_parameter", param)


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", '"a"'])
def test_arguments_that_are_no_object_are_refused_with_their_place(arguments: str) -> None:
    """There they are JSON, not text; an empty string is an empty object."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    refused = refusal(HELLO, {"role": "assistant", "tool_calls": [call]})

    assert refused.code == "invalid_tool_arguments"
    assert refused.param == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    "messages, more, param",
    [
        ([{"role": "assistant", "content": "Hi"}, HELLO], {}, "messages"),
        ([{"role": "system", "content": "Be kind."}], {}, "messages"),
        ([{"role": "user", "content": ""}], {}, "messages"),
        ([HELLO, called("a") | {"thinking_blocks": "Hm."}], {}, "messages[1].thinking_blocks"),
        ([HELLO], {"limit": None}, "max_tokens"),
        ([HELLO], {"stop": "a", "stop_sequences": ["a"]}, "stop_sequences"),
        ([HELLO], {"reasoning_effort": "low", "thinking": {"type": "adaptive"}}, "thinking"),
        ([{"role": "system", "content": "Be kind."}, HELLO], {"system": "Be rude."}, "system"),
    ],
)
def test_what_makes_no_sense_there_is_refused(
    messages: list[dict[str, Any]], more: dict[str, Any], param: str
) -> None:
    """Before a connection is made, with the field at fault."""
    assert refusal(*messages, **more).param == param


@pytest.mark.parametrize(
    "model, version",
    [
        ("claude-3-opus-20240229", (3, 0)),
        ("claude-3-5-sonnet-20241022", (3, 5)),
        ("claude-3-7-sonnet-latest", (3, 7)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-opus-4-1@20250805", (4, 1)),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", (4, 5)),
        ("claude-opus-4.6", (4, 6)),
        ("claude-instant-1.2", (1, 2)),
        ("claude-opus-5", (5, 0)),
        ("deepseek-chat", (99, 0)),
    ],
)
def test_a_models_name_tells_its_generation(model: str, version: tuple[int, int]) -> None:
    """Dates and suffixes are no versions; a name that says none is taken for the newest."""
    assert generation(model) == version
