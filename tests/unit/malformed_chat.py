"""Chat completion requests that OpenAI's specification forbids, each with the field to blame."""

from collections.abc import Iterator
from typing import Any

MODEL = "smollm2-135m"
SAID = [{"role": "user", "content": "Say hello."}]
OK: dict[str, Any] = {"model": MODEL, "messages": SAID}

Row = tuple[str, str, Any]
"""A name, the `param` of the refusal, and the body."""


def with_(**fields: Any) -> dict[str, Any]:
    """A good request with these fields."""
    return {**OK, **fields}


def message(**fields: Any) -> dict[str, Any]:
    """A request with one message of these fields."""
    return {**OK, "messages": [fields]}


def part(**fields: Any) -> dict[str, Any]:
    """A request whose user shows one content part of these fields."""
    return message(role="user", content=[fields])


def tool(**function: Any) -> dict[str, Any]:
    """A request with one function tool of these fields."""
    return with_(tools=[{"type": "function", "function": function}])


def messages() -> Iterator[Row]:
    """Conversations that are none."""
    yield ("no messages", "messages", {"model": MODEL})
    yield ("empty messages", "messages", with_(messages=[]))
    yield ("messages are text", "messages", with_(messages="hello"))
    yield ("messages are null", "messages", with_(messages=None))
    yield ("2,001 messages", "messages", with_(messages=SAID * 2_001))
    yield ("message is text", "messages[0]", with_(messages=["hello"]))
    yield ("no role", "messages[0].role", message(content="hi"))
    yield ("unknown role", "messages[0].role", message(role="robot", content="hi"))
    yield ("role is an array", "messages[0].role", message(role=[], content="hi"))
    yield ("no content", "messages[0].content", message(role="user"))
    yield ("content is null", "messages[0].content", message(role="user", content=None))
    yield ("content is a number", "messages[0].content", message(role="user", content=5))
    yield ("no parts", "messages[0].content", message(role="user", content=[]))
    yield ("silent assistant", "messages[0].content", message(role="assistant"))
    yield (
        "assistant without content or calls",
        "messages[0].content",
        message(role="assistant", content=None, tool_calls=[]),
    )
    yield ("tool without its call", "messages[0].tool_call_id", message(role="tool", content="4"))
    yield ("function without name", "messages[0].name", message(role="function", content=""))
    yield ("name with spaces", "messages[0].name", message(role="user", content="", name="a b"))
    yield (
        "tool call without function",
        "messages[0].tool_calls[0].function",
        message(role="assistant", tool_calls=[{"id": "call_1", "type": "function"}]),
    )
    yield (
        "arguments are an object",
        "messages[0].tool_calls[0].function.arguments",
        message(
            role="assistant",
            tool_calls=[
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
            ],
        ),
    )
    yield ("text part without text", "messages[0].content[0].text", part(type="text"))
    yield ("unknown part", "messages[0].content[0].type", part(type="video"))
    yield ("part without type", "messages[0].content[0].type", part(text="hi"))
    yield (
        "image that is no URL",
        "messages[0].content[0].image_url.url",
        part(type="image_url", image_url={"url": "cat.png"}),
    )
    yield (
        "image URL is text",
        "messages[0].content[0].image_url",
        part(type="image_url", image_url="https://example.com/cat.png"),
    )
    yield (
        "image detail",
        "messages[0].content[0].image_url.detail",
        part(type="image_url", image_url={"url": "https://example.com/a.png", "detail": "max"}),
    )
    yield (
        "audio format",
        "messages[0].content[0].input_audio.format",
        part(type="input_audio", input_audio={"data": "", "format": "ogg"}),
    )
    yield (
        "file without content",
        "messages[0].content[0].file.file_id",
        part(type="file", file={}),
    )
    yield (
        "image in a system message",
        "messages[0].content[0].type",
        message(role="system", content=[{"type": "image_url", "image_url": {"url": "data:,"}}]),
    )
    yield (
        "fault in the third message",
        "messages[2].content",
        with_(messages=[*SAID, {"role": "assistant", "content": "Hello."}, {"role": "user"}]),
    )


def ranges() -> Iterator[Row]:
    """Fields of the wrong type or out of their range; each names itself."""
    for name, value in [
        ("model", ""),
        ("model", None),
        ("model", 5),
        ("model", "m" * 257),
        ("model", "m\0"),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", [1]),
        ("top_p", 1.5),
        ("n", 0),
        ("n", 9),
        ("n", 1.5),
        ("n", True),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 2**31),
        ("max_completion_tokens", "many"),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", 2**63),
        ("seed", 2**70),
        ("seed", -(2**70)),
        ("seed", 1.5),
        ("stop", 5),
        ("stop", []),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("logit_bias", [1]),
        ("logprobs", 1),
        ("top_logprobs", 3),
        ("stream", "true"),
        ("stream_options", {"include_usage": True}),
        ("response_format", "json"),
        ("reasoning_effort", "enormous"),
        ("verbosity", "chatty"),
        ("service_tier", "first class"),
        ("modalities", ["smell"]),
        ("user", "u\0"),
        ("user", 5),
        ("metadata", "k=v"),
        ("metadata", {str(number): "" for number in range(17)}),
        ("store", "yes"),
        ("background", "yes"),
        ("on_disconnect", "explode"),
        ("drop_unsupported", "yes"),
    ]:
        param = "modalities[0]" if name == "modalities" else name
        yield (f"{name} is {str(value)[:30]!a}", param, with_(**{name: value}))
    yield ("no model", "model", {"messages": SAID})
    yield ("top_logprobs", "top_logprobs", with_(logprobs=True, top_logprobs=21))
    yield ("second stop", "stop[1]", with_(stop=["a", None]))
    yield ("bias", "logit_bias.50256", with_(logit_bias={"50256": -101}))
    yield ("two token limits", "max_tokens", with_(max_tokens=5, max_completion_tokens=5))
    yield ("metadata value", "metadata.k", with_(metadata={"k": 1}))
    yield ("long metadata value", "metadata.k", with_(metadata={"k": "v" * 513}))
    yield ("NUL in metadata", "metadata.k", with_(metadata={"k": "\0"}))
    yield ("NUL in a metadata key", "metadata.\\x00", with_(metadata={"\0": "v"}))
    yield ("long metadata key", "metadata." + "k" * 65, with_(metadata={"k" * 65: "v"}))
    yield ("empty metadata key", "metadata.", with_(metadata={"": "v"}))
    yield ("spoken answer without voice", "audio", with_(modalities=["text", "audio"]))
    yield (
        "stream option",
        "stream_options.include_usage",
        with_(stream=True, stream_options={"include_usage": 1}),
    )


def tools() -> Iterator[Row]:
    """Tools, choices and formats that no upstream would take."""
    name, parameters = "tools[0].function.name", "tools[0].function.parameters"
    yield ("tools are an object", "tools", with_(tools={}))
    yield ("129 tools", "tools", with_(tools=tool(name="f")["tools"] * 129))
    yield ("unknown tool type", "tools[0].type", with_(tools=[{"type": "hammer"}]))
    yield ("tool without function", "tools[0].function", with_(tools=[{"type": "function"}]))
    yield ("tool without name", name, tool(description="?"))
    yield ("tool name with spaces", name, tool(name="get weather"))
    yield ("long tool name", name, tool(name="f" * 65))
    yield ("parameters are text", parameters, tool(name="f", parameters="none"))
    yield ("parameters are an array", parameters, tool(name="f", parameters=[]))
    yield ("schema of a string", parameters, tool(name="f", parameters={"type": "string"}))
    yield ("properties", parameters, tool(name="f", parameters={"properties": ["city"]}))
    yield ("required", parameters, tool(name="f", parameters={"required": "city"}))
    yield ("strict", "tools[0].function.strict", tool(name="f", strict="yes"))
    yield (
        "grammar",
        "tools[0].custom.format.type",
        with_(tools=[{"type": "custom", "custom": {"name": "sql", "format": {"type": "bnf"}}}]),
    )
    other = {"type": "function", "function": {"name": "g"}}
    choosing = tool(name="f")
    yield ("unknown choice", "tool_choice", choosing | {"tool_choice": "maybe"})
    yield ("required without tools", "tool_choice", with_(tool_choice="required"))
    yield ("choice is a number", "tool_choice", choosing | {"tool_choice": 5})
    yield (
        "choice of an unknown tool",
        "tool_choice.function.name",
        choosing | {"tool_choice": other},
    )
    yield (
        "choice without name",
        "tool_choice.function.name",
        choosing | {"tool_choice": {"type": "function", "function": {}}},
    )
    yield (
        "unknown tool allowed",
        "tool_choice.allowed_tools.tools[0]",
        choosing
        | {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [other]},
            }
        },
    )
    yield ("no functions", "functions", with_(functions=[]))
    yield (
        "call of an unknown function",
        "function_call.name",
        with_(functions=[{"name": "f"}], function_call={"name": "g"}),
    )
    form = "response_format"
    yield ("unknown format", form + ".type", with_(response_format={"type": "xml"}))
    yield ("no schema", form + ".json_schema", with_(response_format={"type": "json_schema"}))
    for fault, answer in {
        "name": {"schema": {}},
        "schema": {"name": "a", "schema": []},
        "strict": {"name": "a", "strict": 1},
    }.items():
        yield (
            f"schema's {fault}",
            f"{form}.json_schema.{fault}",
            with_(response_format={"type": "json_schema", "json_schema": answer}),
        )
