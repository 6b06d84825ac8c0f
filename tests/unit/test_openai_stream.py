"""Answers in OpenAI's dialect, cut into any chunks and any bytes."""

import copy
import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.chat import Transcript
from workers.upstreams.openai_stream import ChatBody, ChatEvents
from workers.upstreams.protocol import Delta

WORDS = st.text(alphabet='abü😀" \n\\', min_size=1, max_size=12)
TEXTS = ("content", "refusal", "reasoning_content")


@st.composite
def choices(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The choices of a whole completion, as an unstreamed call returns them."""
    return [draw(choice(index)) for index in range(draw(st.integers(1, 3)))]


@st.composite
def choice(draw: st.DrawFn, index: int) -> dict[str, Any]:
    """One of them: texts, tool calls, log probabilities."""
    message: dict[str, Any] = {"role": "assistant", "content": draw(WORDS), "refusal": None}
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": said}}
        for number, (name, said) in enumerate(
            draw(st.lists(st.tuples(st.sampled_from(["look", "sum"]), WORDS), max_size=2))
        )
    ]
    if calls:
        message |= {"content": None, "tool_calls": calls}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(WORDS)
    tokens = [{"token": token, "logprob": -0.5} for token in draw(st.lists(WORDS, max_size=2))]
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": tokens, "refusal": None} if tokens else None,
        "finish_reason": draw(st.sampled_from(["stop", "length", "tool_calls"])),
    }


def pieces_of(draw: st.DrawFn, whole: Any) -> list[Any]:
    """A text, or bytes, in consecutive pieces."""
    places = draw(st.lists(st.integers(0, len(whole)), max_size=4))
    return [whole[a:b] for a, b in pairwise([0, *sorted(places), len(whole)])]


def deltas_of(draw: st.DrawFn, message: dict[str, Any]) -> list[dict[str, Any]]:
    """What says this message, piece by piece."""
    said: list[dict[str, Any]] = [
        {"role": "assistant", "content": draw(st.sampled_from(["", None]))}
    ]
    for name in TEXTS:
        if text := message.get(name):
            said += [{name: piece} for piece in pieces_of(draw, text)]
    for number, call in enumerate(message.get("tool_calls", ())):
        begun = copy.deepcopy(call) | {"index": number}
        begun["function"]["arguments"] = ""
        said.append({"content": None, "tool_calls": [begun]})
        for piece in pieces_of(draw, call["function"]["arguments"]):
            said.append({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
    return said


@st.composite
def streamed(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Choices, and the stream that says them, in turns, cut anywhere."""
    whole = draw(choices())
    chunks: list[dict[str, Any]] = []
    for one in whole:
        chosen = [{"delta": delta} for delta in deltas_of(draw, one["message"])]
        for token in (one["logprobs"] or {}).get("content", ()):
            chosen.append({"delta": {}, "logprobs": {"content": [token], "refusal": None}})
        chosen.append({"delta": {}, "finish_reason": one["finish_reason"]})
        chunks += [{"choices": [{"index": one["index"], **each}]} for each in chosen]
    chunks.append({"choices": [], "usage": {"total_tokens": 1}})
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    events = [*(json.dumps(chunk, ensure_ascii=False) for chunk in chunks), "[DONE]"]
    raw = "".join(f"data: {event}{newline * 2}" for event in events)
    return whole, pieces_of(draw, raw.encode())


def put_together(deltas: list[Delta]) -> list[dict[str, Any]]:
    """The choices that these deltas amount to."""
    transcript = Transcript()
    for delta in deltas:
        transcript.add(delta.choices, delta.extra)
    return transcript.choices()


@settings(max_examples=60, deadline=None)
@given(streamed())
def test_a_stream_put_together_again_is_the_unstreamed_answer(
    case: tuple[list[dict[str, Any]], list[bytes]],
) -> None:
    """Any choices, any chunks, cut inside a letter or CRLF: nothing lost, and nothing twice."""
    whole, pieces = case
    reader = ChatEvents(len(whole), None)

    deltas = [delta for piece in pieces if piece for delta in reader.feed(piece)]

    assert reader.failure is None
    reader.check_ending()
    assert put_together(deltas) == whole
    told = [json.loads(line) for delta in deltas for line in delta.lines]
    assert all(type(chunk["choices"][0]["delta"]) is dict for chunk in told)
    assert all(chunk["choices"][0]["delta"].get("content", "") is not None for chunk in told)


@settings(max_examples=40, deadline=None)
@given(choices())
def test_a_server_that_does_not_stream_is_heard_the_same(whole: list[dict[str, Any]]) -> None:
    """One JSON body becomes deltas that amount to it."""
    reader = ChatBody(len(whole), None)

    reader.feed(json.dumps({"choices": whole, "usage": {"total_tokens": 1}}).encode())
    deltas = reader.feed(b"")

    assert reader.failure is None
    assert put_together(deltas) == whole
