"""Deltas put together again."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.chat import Transcript

WORDS = st.text(alphabet="abü😀 \n", min_size=1, max_size=12)


def chosen(
    delta: dict[str, Any], index: int = 0, finish: str | None = None
) -> list[dict[str, Any]]:
    """The choices of a chunk that says this."""
    return [{"index": index, "delta": delta, "finish_reason": finish}]


def heard(*deltas: dict[str, Any]) -> dict[str, Any]:
    """The message that these deltas make."""
    transcript = Transcript()
    for delta in deltas:
        transcript.add(chosen(delta))
    message: dict[str, Any] = transcript.choices()[0]["message"]
    return message


# Any message, cut anywhere.


@st.composite
def tool_calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Tool calls of both kinds, as a whole message has them."""
    calls: list[dict[str, Any]] = []
    for place in range(draw(st.integers(0, 3))):
        name, text = draw(st.sampled_from(["look", "sum"])), draw(WORDS | st.just(""))
        call = {"id": f"call_{place}", "type": "function"}
        if draw(st.booleans()):
            calls.append(call | {"function": {"name": name, "arguments": text}})
        else:
            calls.append(call | {"type": "custom", "custom": {"name": name, "input": text}})
    return calls


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """A whole assistant message with some of what a message can have."""
    audio = st.fixed_dictionaries({"id": st.just("a"), "data": WORDS, "expires_at": st.just(5)})
    function = st.fixed_dictionaries({"name": st.just("old"), "arguments": WORDS})
    optional: dict[str, st.SearchStrategy[Any]] = {
        "reasoning_content": WORDS,
        "reasoning": WORDS,
        "odd_words": WORDS,
        "annotations": st.lists(st.fixed_dictionaries({"url": WORDS}), max_size=3),
        "function_call": function,
        "audio": audio,
        "tool_calls": tool_calls().filter(bool),
    }
    plain = {"role": st.just("assistant"), "content": WORDS, "refusal": WORDS | st.none()}
    message: dict[str, Any] = draw(st.fixed_dictionaries(plain, optional=optional))
    if draw(st.booleans()):
        others = ("tool_calls", "function_call", "refusal", "audio")
        message["content"] = None if any(message.get(name) for name in others) else ""
    return message


@st.composite
def choices(draw: st.DrawFn) -> list[dict[str, Any]]:
    """`choices` of a whole `chat.completion`."""
    tokens = st.none() | st.lists(st.fixed_dictionaries({"token": WORDS, "logprob": st.just(-1.5)}))
    logprobs = st.none() | st.fixed_dictionaries({"content": tokens, "refusal": tokens})
    return [
        {
            "index": index,
            "message": draw(messages()),
            "logprobs": draw(logprobs),
            "finish_reason": draw(st.sampled_from(["stop", "length", "tool_calls"])),
        }
        for index in range(draw(st.integers(1, 3)))
    ]


def pieces_of(draw: st.DrawFn, value: Any) -> list[Any]:
    """A string or list in consecutive pieces, at least one."""
    places = sorted(draw(st.lists(st.integers(0, len(value)), max_size=3)))
    edges = [0, *places, len(value)]
    return [value[a:b] for a, b in pairwise(edges)]


def deltas_of(draw: st.DrawFn, choice: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The chunks of each part of this choice, each list in its order."""
    index, message = choice["index"], choice["message"]
    tracks: list[list[dict[str, Any]]] = []
    for name, value in message.items():
        if name == "role" or value is None:
            continue
        if name == "tool_calls":
            for place, call in enumerate(value):
                kind, text = (
                    ("function", "arguments") if "function" in call else ("custom", "input")
                )
                opening = {**call, "index": place, kind: {**call[kind], text: ""}}
                more = [
                    {"index": place, kind: {text: piece}}
                    for piece in pieces_of(draw, call[kind][text])
                ]
                tracks.append([{"tool_calls": [part]} for part in (opening, *more)])
        elif isinstance(value, dict):
            text = "arguments" if name == "function_call" else "data"
            opening = {name: {**value, text: ""}}
            tracks.append([opening, *({name: {text: p}} for p in pieces_of(draw, value[text]))])
        else:
            tracks.append([{name: piece} for piece in pieces_of(draw, value)])
    chunks = [[{"index": index, "delta": delta} for delta in track] for track in tracks]
    for name, tokens in (choice["logprobs"] or {}).items():
        given = [None] if tokens is None else pieces_of(draw, tokens)
        blank = {"content": None, "refusal": None}
        chunks.append(
            [{"index": index, "delta": {}, "logprobs": blank | {name: part}} for part in given]
        )
    return chunks


@st.composite
def cut_up(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Choices, and chunks that say them: all parts of all choices interleaved."""
    whole = draw(choices())
    tracks = [track for choice in whole for track in deltas_of(draw, choice) if track]
    order = draw(st.permutations([at for at, track in enumerate(tracks) for _ in track]))
    upcoming = [iter(track) for track in tracks]
    opening = {"role": "assistant", "content": ""}
    begun: list[dict[str, Any]] = [{"index": c["index"], "delta": opening} for c in whole]
    ended = [{"index": c["index"], "delta": {}, "finish_reason": c["finish_reason"]} for c in whole]
    said = [*begun, *(next(upcoming[at]) for at in order), *ended]
    if draw(st.booleans()):
        return whole, [said]
    return whole, [[one] for one in said]


@given(cut_up())
def test_a_message_cut_into_any_deltas_comes_back_whole(
    case: tuple[list[dict[str, Any]], list[list[dict[str, Any]]]],
) -> None:
    """Several choices at once, tool calls between words, log probabilities: nothing is lost."""
    whole, chunks = case
    transcript = Transcript()
    for chunk in chunks:
        transcript.add(chunk)

    assert transcript.choices() == whole


@settings(max_examples=30)
@given(cut_up())
def test_the_letters_counted_are_the_letters_said(
    case: tuple[list[dict[str, Any]], list[list[dict[str, Any]]]],
) -> None:
    """Content, refusals, thoughts and arguments; a thought under two names counts once a chunk."""
    whole, chunks = case
    transcript = Transcript()
    for chunk in chunks:
        transcript.add(chunk)

    said = 0
    for message in (choice["message"] for choice in whole):
        for name in ("content", "refusal", "reasoning_content", "reasoning"):
            said += len(message.get(name) or "")
        for call in [*message.get("tool_calls", []), {"function": message.get("function_call")}]:
            function = call.get("function") or call.get("custom") or {}
            said += len(function.get("arguments") or function.get("input") or "")
    assert transcript.characters == said


# The commit point.


@pytest.mark.parametrize(
    "delta, spoke",
    [
        ({}, False),
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": "", "refusal": None, "tool_calls": []}, False),
        ({"content": "a"}, True),
        ({"content": " "}, True),
        ({"reasoning_content": "hm"}, True),
        ({"reasoning": "hm"}, True),
        ({"refusal": "no"}, True),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}, True),
        ({"function_call": {"name": "f"}}, True),
        ({"audio": {"data": "AA"}}, True),
        ({"words_of_next_year": "a"}, True),
    ],
)
def test_only_what_a_reader_would_see_is_speech(delta: dict[str, Any], spoke: bool) -> None:
    """A role or an empty string leaves another attempt open."""
    transcript = Transcript()
    transcript.add(chosen(delta))

    assert transcript.spoke is spoke


# What servers do differently.


def call(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    """A delta with one part of a tool call."""
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return {"tool_calls": [{"function": function, **more}]}


@pytest.mark.parametrize(
    "deltas",
    [
        [call("f", "1", id="a"), call("g", "2", id="b")],
        [call("f", "1", id="a", index=0), call("g", "2", id="b", index=0)],
        [call("f", "", id="a"), call("", "1"), call("g", "", id="b"), call("", "2")],
        [
            call("f", "", id="a"),
            call("g", "", id="b"),
            call("", "1", id="a"),
            call("", "2", id="b"),
        ],
        [call("g", "2", id="b", index=1), call("f", "1", id="a", index=0)],
        [call("f", "", id="a", index=0), call("f", "1", id="a", index=0), call("g", "2", id="b")],
        [
            call("f", "1", id="a", index=0),
            call("g", "", id="b", index=1),
            call("", "2", id="", index=1),
        ],
    ],
)
def test_tool_calls_are_told_apart_however_they_are_numbered(deltas: list[dict[str, Any]]) -> None:
    """Without an index, all with index 0, out of order, with the name said twice."""
    assert heard(*deltas)["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "1"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "2"}},
    ]


def test_only_tool_calls_leave_no_content() -> None:
    """As OpenAI answers: null, not an empty string."""
    assert heard({"role": "assistant", "content": ""}, call("f", "{}", id="a"))["content"] is None
    assert heard({"role": "assistant", "content": ""})["content"] == ""


def test_content_in_parts_and_in_words_is_all_kept() -> None:
    """Some servers think in parts and answer in strings."""
    thought = {"type": "thinking", "thinking": "hm"}

    assert heard({"content": ""}, {"content": [thought]}, {"content": "Yes"})["content"] == [
        thought,
        {"type": "text", "text": "Yes"},
    ]
    assert heard({"content": "Yes"}, {"content": [thought]})["content"] == [
        {"type": "text", "text": "Yes"},
        thought,
    ]


def test_fields_of_choice_and_chunk_that_we_do_not_know_survive() -> None:
    """Lists grow, of the rest the last that is not null stands."""
    transcript = Transcript()
    hello = {"index": 0, "delta": {"content": "a"}, "token_ids": [1], "stop_reason": None}
    there = {"index": 0, "delta": {"content": "b"}, "token_ids": [2, 3], "stop_reason": "END"}
    transcript.add([hello], {"system_fingerprint": "fp_1", "service_tier": "flex", "id": "theirs"})
    transcript.add([there], {"system_fingerprint": None, "service_tier": "default", "choices": []})
    transcript.add(chosen({}, finish="stop"))

    completion = transcript.completion(id="chatcmpl-1", created=5, model="m", usage={"a": 1})

    message = {"role": "assistant", "content": "ab", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert completion == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [{**choice, "token_ids": [1, 2, 3], "stop_reason": "END"}],
        "usage": {"a": 1},
        "system_fingerprint": "fp_1",
        "service_tier": "default",
    }


def test_a_transcript_can_be_shown_before_its_end_and_goes_on() -> None:
    """A partial answer has no finish reason, and showing it changes nothing."""
    transcript = Transcript()
    transcript.add(chosen({"content": "Hel"}))
    partial = transcript.choices()
    transcript.add(chosen({"content": "lo"}, finish="stop"))

    assert partial[0]["finish_reason"] is None
    assert partial[0]["message"]["content"] == "Hel"
    assert transcript.choices()[0]["message"]["content"] == "Hello"
