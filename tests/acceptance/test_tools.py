"""Tools, structured answers, pictures: through the official SDKs, whatever the upstream speaks."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.dialects import Bilingual, bilingual
from tests.fakes.anthropic import signed
from tests.fakes.upstream import Finish, Reasoning, Say, ScriptedUpstream, Tool, Usage
from tests.sdks import Application

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "And in Oslo?"}]
WEATHER = '{"city": "Oslo", "days": 3}'


class Weather(BaseModel):
    """The weather of the next days."""

    city: str
    days: int


class Now(BaseModel):
    """The time of day."""


TOOLS = [pydantic_function_tool(Weather), pydantic_function_tool(Now)]

each_dialect = pytest.mark.parametrize("model", ["gpt", "claude"])
each_path = pytest.mark.parametrize("path", ["/v1", "/v1/public"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bilingual]:
    """A model of each dialect."""
    with bilingual(tmp_path_factory.mktemp("tools"), ["gpt"], ["claude"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def key(service: Bilingual) -> str:
    """The key of somebody who can pay."""
    return service.rich("tools").key


@pytest.fixture(scope="module")
def client(service: Bilingual, key: str) -> OpenAI:
    """The SDK, pointed at `/v1`."""
    return service.stack.client(key)


def behind(service: Bilingual, model: str) -> ScriptedUpstream:
    """The upstream that runs this model."""
    return service.openai if model == "gpt" else service.anthropic


@each_path
@each_dialect
def test_an_answer_is_parsed_into_the_class_it_was_asked_as(
    service: Bilingual, client: OpenAI, model: str, path: str
) -> None:
    """`parse` sends the schema to the upstream, in its own words, and gets an object."""
    client = client.with_options(base_url=service.stack.url + path)
    upstream = behind(service, model)
    upstream.script(model, Say(WEATHER))

    parsed = client.chat.completions.parse(model=model, messages=ASKED, response_format=Weather)

    assert parsed.choices[0].message.parsed == Weather(city="Oslo", days=3)
    sent = upstream.calls_of(model)[-1].body
    told = sent["response_format"]["json_schema"] if model == "gpt" else sent["output_config"]
    schema = told["schema"] if model == "gpt" else told["format"]["schema"]
    assert schema["required"] == ["city", "days"]


@each_dialect
def test_arguments_are_parsed_into_the_class_of_the_tool(
    service: Bilingual, client: OpenAI, model: str
) -> None:
    """`pydantic_function_tool` there and back, two calls at once, one without arguments."""
    upstream = behind(service, model)
    calls = Tool("Weather", WEATHER, id="call_a"), Tool("Now", "{}", id="call_b", index=1)
    upstream.script(model, *calls, Finish("tool_calls"))

    parsed = client.chat.completions.parse(model=model, messages=ASKED, tools=TOOLS)

    [weather, now] = parsed.choices[0].message.tool_calls or []
    assert parsed.choices[0].finish_reason == "tool_calls"
    assert (weather.id, weather.function.parsed_arguments) == (
        "call_a",
        Weather.model_validate_json(WEATHER),
    )
    assert (now.id, now.function.parsed_arguments) == ("call_b", Now())


@each_dialect
@pytest.mark.parametrize(
    "reason, raised",
    [
        ("length", openai.LengthFinishReasonError),
        ("content_filter", openai.ContentFilterFinishReasonError),
    ],
)
def test_half_an_answer_is_not_parsed(
    service: Bilingual, client: OpenAI, model: str, reason: str, raised: type[Exception]
) -> None:
    """Each dialect's word for why it stopped is the one that the SDK raises for."""
    theirs = {"length": "max_tokens", "content_filter": "refusal"}[reason]
    said = reason if model == "gpt" else theirs
    behind(service, model).script(model, Say('{"city": "Os'), Finish(said))

    with pytest.raises(raised):
        client.chat.completions.parse(model=model, messages=ASKED, response_format=Weather)


@each_path
@each_dialect
def test_the_stream_helper_tells_what_happens_as_it_happens(
    service: Bilingual, client: OpenAI, model: str, path: str
) -> None:
    """Text and arguments in pieces, each whole in the end, and the answer a held call would get."""
    client = client.with_options(base_url=service.stack.url + path)
    said = Usage(9, 12), Say("Let me see."), Tool("Weather", WEATHER, id="call_a")
    behind(service, model).script(model, *said, Finish("tool_calls"))
    asked: Any = {"model": model, "messages": ASKED, "tools": TOOLS}

    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_completion()

    told: dict[str, list[Any]] = {}
    for event in events:
        told.setdefault(event.type, []).append(event)
    arguments = told["tool_calls.function.arguments.delta"]
    [done] = told["tool_calls.function.arguments.done"]
    assert "".join(event.delta for event in told["content.delta"]) == "Let me see."
    assert [event.content for event in told["content.done"]] == ["Let me see."]
    assert len(arguments) > 3
    assert "".join(event.arguments_delta for event in arguments) == done.arguments == WEATHER
    assert done.parsed_arguments == Weather(city="Oslo", days=3)
    held = client.chat.completions.parse(**asked)
    numbers: Any = {"tool_calls": {"__all__": {"index"}}}  # which the helper leaves in
    streamed = final.choices[0].message.model_dump(exclude=numbers)
    assert streamed == held.choices[0].message.model_dump()
    assert final.choices[0].finish_reason == held.choices[0].finish_reason == "tool_calls"


@each_dialect
def test_a_structured_answer_grows_while_it_is_streamed(
    service: Bilingual, client: OpenAI, model: str
) -> None:
    """The helper parses what is there so far."""
    behind(service, model).script(model, Say(pieces=['{"city": "Os', 'lo", "da', 'ys": 3}']))

    with client.chat.completions.stream(
        model=model, messages=ASKED, response_format=Weather
    ) as stream:
        grown = [event.parsed for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()

    assert [part for part in grown if part][-1] == {"city": "Oslo", "days": 3}
    assert final.choices[0].message.parsed == Weather(city="Oslo", days=3)


@each_dialect
def test_a_tool_loop_comes_to_its_answer(service: Bilingual, client: OpenAI, model: str) -> None:
    """Call, result, answer: the SDK's own message goes back, and the upstream finds its calls."""
    upstream = behind(service, model)
    calls = Tool("Weather", WEATHER, id="call_a"), Tool("Now", "{}", id="call_b", index=1)
    upstream.script_calls(
        model, (Say("A moment."), *calls, Finish("tool_calls")), (Say("Rain at 9 o'clock."),)
    )
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, *ASKED]

    asked = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
    messages.append(asked.choices[0].message)
    for call in asked.choices[0].message.tool_calls or []:
        assert call.type == "function"
        result = {"of": call.function.name, **json.loads(call.function.arguments)}
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)

    assert answer.choices[0].message.content == "Rain at 9 o'clock."
    said = upstream.calls_of(model)[-1].body["messages"]
    assert _calls_in(said) == [("call_a", "Weather", json.loads(WEATHER)), ("call_b", "Now", {})]
    assert _results_in(said) == ["call_a", "call_b"]


def test_thoughts_keep_their_signatures_through_a_tool_loop(
    service: Bilingual, client: OpenAI
) -> None:
    """Anthropic refuses a turn that thought and called, unless the thoughts come back signed."""
    service.anthropic.script_calls(
        "claude",
        (Reasoning("Hm."), signed("c2ln"), Tool("Now", "{}", id="call_a"), Finish("tool_calls")),
        (Say("Nine."),),
    )
    messages: list[Any] = [*ASKED]

    with client.chat.completions.stream(
        model="claude", messages=messages, tools=TOOLS, reasoning_effort="low"
    ) as stream:
        thought = stream.get_final_completion().choices[0].message
    messages += [thought, {"role": "tool", "tool_call_id": "call_a", "content": "9:00"}]
    client.chat.completions.create(
        model="claude", messages=messages, tools=TOOLS, reasoning_effort="low"
    )

    turn = service.anthropic.calls_of("claude")[-1].body["messages"][1]["content"]
    assert turn[0] == {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    assert turn[-1]["type"] == "tool_use"


@each_dialect
def test_pictures_and_documents_reach_the_model(
    service: Bilingual, client: OpenAI, model: str
) -> None:
    """OpenAI's parts as they are; for Claude its own blocks, the picture before the PDF."""
    upstream = behind(service, model)
    upstream.script(model, Say("A cat."))
    picture, pdf = "data:image/png;base64,AAAA", "data:application/pdf;base64,JVBERg=="
    parts: Any = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": pdf}},
    ]

    client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])

    shown = upstream.calls_of(model)[-1].body["messages"][0]["content"]
    if model == "gpt":
        assert shown == parts
    else:
        assert [block["type"] for block in shown] == ["image", "document"]
        assert [block["source"]["data"] for block in shown] == ["AAAA", "JVBERg=="]


@pytest.fixture(scope="module")
def node() -> Iterator[Application]:
    """An application of the newest openai-node."""
    with Application("node-7") as application:
        yield application


@each_dialect
@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_of_openai_node_runs_to_its_answer(
    service: Bilingual, node: Application, key: str, model: str, stream: bool
) -> None:
    """It calls what it was given, sends the result, and asks again by itself."""
    upstream = behind(service, model)
    call = Tool("weather", '{"city": "Oslo"}', id="call_a")
    upstream.script_calls(model, (call, Finish("tool_calls")), (Say("Take an umbrella."),))
    asked = {"base_url": f"{service.stack.url}/v1", "key": key}

    node.ask("tools", **asked, body={"model": model, "messages": ASKED, "stream": stream})
    seen = node.answer()

    assert seen["said"] == "Take an umbrella."
    assert seen["roles"] == ["user", "assistant", "tool", "assistant"]
    assert "Rain in Oslo." in json.dumps(upstream.calls_of(model)[-1].body)


def _calls_in(messages: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
    """The calls that an upstream was shown, in either dialect."""
    openai_calls = [call for message in messages for call in message.get("tool_calls") or ()]
    blocks = [block for block in _blocks(messages) if block["type"] == "tool_use"]
    return [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in openai_calls
    ] + [(block["id"], block["name"], block["input"]) for block in blocks]


def _results_in(messages: list[dict[str, Any]]) -> list[str]:
    """The calls whose results it was shown."""
    results = [block for block in _blocks(messages) if block["type"] == "tool_result"]
    return [message["tool_call_id"] for message in messages if message["role"] == "tool"] + [
        block["tool_use_id"] for block in results
    ]


def _blocks(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    contents = [message["content"] for message in messages]
    return [block for content in contents if isinstance(content, list) for block in content]
