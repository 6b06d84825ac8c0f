"""Answers of Anthropic's Messages API, cut into any events and any bytes."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.chat import Transcript
from shared.errors import UpstreamDisconnected, UpstreamError
from workers.upstreams.anthropic_messages import conversation
from workers.upstreams.anthropic_stream import MessageEvents, openai_usage
from workers.upstreams.protocol import Delta

WORDS = st.text(alphabet='abü😀" \n\\', min_size=1, max_size=12)
COUNTS = st.integers(0, 5_000)
STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """A whole message, as an unstreamed call returns it."""
    thought = st.fixed_dictionaries(
        {"type": st.just("thinking"), "thinking": WORDS | st.just(""), "signature": WORDS}
    )
    redacted = st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": WORDS})
    text = st.fixed_dictionaries(
        {"type": st.just("text"), "text": WORDS},
        optional={"citations": st.lists(st.fixed_dictionaries({"cited_text": WORDS}), max_size=2)},
    )
    blocks: list[dict[str, Any]] = draw(st.lists(thought | redacted | text, max_size=4))
    for number in range(draw(st.integers(0, 2))):
        arguments = draw(st.dictionaries(WORDS, WORDS, max_size=2))
        name = draw(st.sampled_from(["look", "sum"]))
        blocks.append(
            {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments}
        )
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    usage = {name: draw(COUNTS) for name in (*names, "output_tokens")}
    reason = draw(st.sampled_from(sorted(STOP_REASONS)))
    return {"role": "assistant", "content": blocks, "stop_reason": reason, "usage": usage}


def answer_of(message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choice and the usage that OpenAI would have answered without streaming."""
    blocks = message["content"]
    said: dict[str, Any] = {"role": "assistant", "refusal": None}
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": json.dumps(block["input"])},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    text = "".join(block.get("text", "") for block in blocks)
    said["content"] = text or (None if calls else "")
    optional = {
        "tool_calls": calls,
        "reasoning_content": "".join(block.get("thinking", "") for block in blocks),
        "thinking_blocks": [block for block in blocks if "thinking" in block["type"]],
        "citations": [cited for block in blocks for cited in block.get("citations", ())],
    }
    said |= {name: value for name, value in optional.items() if value}
    choice = {"index": 0, "message": said, "logprobs": None}
    reason = message["stop_reason"]
    choice |= {"finish_reason": STOP_REASONS[reason], "native_finish_reason": reason}
    usage = message["usage"]
    read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    prompt = usage["input_tokens"] + read + written
    return choice, {
        "prompt_tokens": prompt,
        "completion_tokens": usage["output_tokens"],
        "total_tokens": prompt + usage["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
    }


def pieces_of(draw: st.DrawFn, whole: Any) -> list[Any]:
    """A text, or bytes, in consecutive pieces."""
    places = draw(st.lists(st.integers(0, len(whole)), max_size=4))
    return [whole[a:b] for a, b in pairwise([0, *sorted(places), len(whole)])]


def deltas_of(draw: st.DrawFn, block: dict[str, Any]) -> list[dict[str, Any]]:
    """What fills this block after its opening, piece by piece."""
    match block["type"]:
        case "text":
            cited = block.get("citations", ())
            more = [{"type": "citations_delta", "citation": citation} for citation in cited]
            said = pieces_of(draw, block["text"])
            return [*({"type": "text_delta", "text": piece} for piece in said), *more]
        case "thinking":
            said = pieces_of(draw, block["thinking"])
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return [*({"type": "thinking_delta", "thinking": piece} for piece in said), signature]
        case "tool_use":
            said = pieces_of(draw, json.dumps(block["input"])) if block["input"] else [""]
            return [{"type": "input_json_delta", "partial_json": piece} for piece in said]
    return []


def events_of(draw: st.DrawFn, message: dict[str, Any]) -> list[dict[str, Any]]:
    """The same message as a stream of events."""
    usage = dict(message["usage"])
    ended = {"output_tokens": usage.pop("output_tokens")}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"content": [], "usage": usage | {"output_tokens": 1}}}
    ]
    empty = {"text": "", "thinking": "", "signature": "", "input": {}}
    for index, block in enumerate(message["content"]):
        opening = {name: empty.get(name, value) for name, value in block.items()}
        opening.pop("citations", None)
        events.append({"type": "content_block_start", "index": index, "content_block": opening})
        for delta in deltas_of(draw, block):
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
            if draw(st.booleans()):
                events.append({"type": "ping"})
        events.append({"type": "content_block_stop", "index": index})
    stopped = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": stopped, "usage": ended})
    return [*events, {"type": "message_stop"}]


@st.composite
def streamed(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes]]:
    """A message, and the stream that says it, cut anywhere."""
    message = draw(messages())
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    lines = [
        f"event: {event['type']}{newline}data: {json.dumps(event, ensure_ascii=False)}{newline * 2}"
        for event in events_of(draw, message)
    ]
    return message, pieces_of(draw, "".join(lines).encode())


def heard(pieces: Sequence[bytes]) -> list[Delta]:
    """The deltas of a stream that must not fail."""
    reader = MessageEvents(None)
    deltas = [delta for piece in pieces if piece for delta in reader.feed(piece)]
    assert reader.failure is None
    reader.check_ending()
    return deltas


@settings(max_examples=40, deadline=None)
@given(streamed())
def test_a_stream_put_together_again_is_the_unstreamed_answer(
    case: tuple[dict[str, Any], list[bytes]],
) -> None:
    """Any blocks, any events, cut inside a letter or CRLF: nothing lost, and nothing twice."""
    message, pieces = case
    transcript = Transcript()
    usage = None
    for delta in heard(pieces):
        assert list(map(json.loads, delta.lines)) == [{"choices": delta.choices}]
        transcript.add(delta.choices, delta.extra)
        usage = delta.usage or usage

    expected, counted = answer_of(message)
    choice = transcript.choices()[0]
    for call in choice["message"].get("tool_calls", ()):
        call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]))
    assert choice == expected
    assert usage == counted


@settings(max_examples=40, deadline=None)
@given(streamed())
def test_an_answer_given_back_is_the_message_it_came_from(
    case: tuple[dict[str, Any], list[bytes]],
) -> None:
    """Thoughts keep their signatures and their place before the calls they led to."""
    message, pieces = case
    transcript = Transcript()
    for delta in heard(pieces):
        transcript.add(delta.choices)

    said = transcript.choices()[0]["message"]
    turns = conversation([{"role": "user", "content": "Hello"}, said])[1]

    blocks = message["content"]
    text = "".join(block.get("text", "") for block in blocks)
    assert [block for turn in turns[1:] for block in turn["content"]] == [
        *(block for block in blocks if "thinking" in block["type"]),
        *([{"type": "text", "text": text}] if text else []),
        *(block for block in blocks if block["type"] == "tool_use"),
    ]


@settings(max_examples=40, deadline=None)
@given(streamed(), st.data())
def test_a_stream_without_its_last_event_is_no_answer(
    case: tuple[dict[str, Any], list[bytes]], data: st.DataObject
) -> None:
    """However much of it arrived."""
    raw = b"".join(case[1])
    reader = MessageEvents(None)
    reader.feed(raw[: data.draw(st.integers(0, raw.index(b"event: message_stop")))])
    reader.feed(b"")

    assert reader.failure is None
    with pytest.raises(UpstreamDisconnected):
        reader.check_ending()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "text", "id", "input"]), inner, max_size=3)
    ),
    max_leaves=8,
)
EVENTS = ["message_start", "message_delta", "message_stop", "error"]
EVENTS += ["content_block_start", "content_block_delta", "content_block_stop"]
TYPES = ["text", "thinking", "redacted_thinking", "tool_use", "text_delta", "thinking_delta"]
TYPES += ["signature_delta", "input_json_delta", "citations_delta"]
FIELDS = ["text", "thinking", "signature", "id", "name", "input", "partial_json", "citation"]
ALMOST_A_BLOCK = JSON | st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)}, optional={name: JSON for name in FIELDS}
)
ALMOST_AN_EVENT = JSON | st.fixed_dictionaries(
    {
        "type": st.sampled_from(EVENTS),
    },
    optional={
        "index": st.integers(0, 1) | JSON,
        "content_block": ALMOST_A_BLOCK,
        "delta": ALMOST_A_BLOCK,
        "message": st.fixed_dictionaries({"usage": JSON}),
        "usage": JSON,
        "error": JSON,
    },
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ALMOST_AN_EVENT.map(json.dumps).map(str.encode) | st.binary(), max_size=6))
def test_no_answer_however_odd_is_anything_but_deltas_or_an_upstream_failure(
    lines: list[bytes],
) -> None:
    """Noise and JSON of the wrong shapes: never another exception, never half a transcript."""
    reader = MessageEvents(None)
    transcript = Transcript()
    for line in lines:
        for delta in reader.feed(b"data: " + line + b"\n\n"):
            transcript.add(delta.choices, delta.extra)
        if reader.failure is not None:
            break

    transcript.choices()
    assert reader.failure is None or isinstance(reader.failure, UpstreamError)


@pytest.mark.parametrize("reason, finish", [*STOP_REASONS.items(), ("of_next_year", "stop")])
def test_each_stop_reason_is_a_finish_reason(reason: str, finish: str) -> None:
    """Its own name stays beside it."""
    reader = MessageEvents(None)
    reader.take({"type": "message_delta", "delta": {"stop_reason": reason}})

    delta = reader.take({"type": "message_stop"})

    assert delta is not None
    choice = delta.choices[0]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == (finish, reason)


def test_each_token_is_counted_once() -> None:
    """OpenAI's prompt contains what was cached; a count of zero is a count."""
    usage = openai_usage(
        {
            "input_tokens": 0,
            "cache_read_input_tokens": 20,
            "cache_creation_input_tokens": 3,
            "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 5},
        }
    )

    assert usage == {
        "prompt_tokens": 23,
        "completion_tokens": 7,
        "total_tokens": 30,
        "prompt_tokens_details": {
            "cached_tokens": 20,
            "cache_write_tokens": 3,
            "cache_write_5m_tokens": 1,
            "cache_write_1h_tokens": 2,
        },
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
