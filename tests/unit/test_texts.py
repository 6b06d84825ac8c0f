"""Chunks known by what surrounds their text say what they would say if they were read."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.chat import Transcript
from workers.upstreams.openai_stream import OURS, ChatEvents
from workers.upstreams.protocol import Delta

TEXT = st.sampled_from(
    [
        "a",
        "b",
        "",
        "0",
        "index",
        "content",
        '"',
        "\\",
        "\n",
        '","',
        '"}',
        "ü",
        "😀",
        "\x00",
        "\u2028",
    ]
)


@st.composite
def chunk(draw: st.DrawFn) -> str:
    """A chunk of text, as one server or another writes it."""
    choice: dict[str, Any] = {
        "index": draw(st.sampled_from([0, 0, 0, 1])),
        "delta": {"content": draw(TEXT) + draw(TEXT)},
        **draw(st.sampled_from([{}, {"finish_reason": None}, {"logprobs": None}, {"odd": "a"}])),
    }
    told = {
        "id": "chatcmpl-a",
        **draw(st.sampled_from([{}, {"system_fingerprint": "a"}, {"system_fingerprint": "b"}])),
        "choices": [choice],
        **draw(st.sampled_from([{}, {"usage": None}, {"obfuscation": draw(TEXT)}])),
    }
    compact, ascii_only = draw(st.booleans()), draw(st.booleans())
    return json.dumps(
        told, ensure_ascii=ascii_only, separators=(",", ":") if compact else (", ", ": ")
    )


def heard(chunks: Sequence[str]) -> tuple[list[Delta], ChatEvents]:
    """What they become when they come together."""
    reader = ChatEvents(1, None)
    return reader.feed("".join(f"data: {each}\n\n" for each in chunks).encode()), reader


def whole(said: Transcript) -> dict[str, Any]:
    """The completion that was said."""
    return said.completion(id="", created=0, model="")


def lines(deltas: Sequence[Delta]) -> list[Any]:
    """The chunks that they keep."""
    return [json.loads(line) for delta in deltas for line in delta.lines]


def alike(*texts: str, **more: Any) -> list[str]:
    """Chunks with these texts and nothing else that differs."""
    return [
        json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], **more})
        for text in texts
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(chunk(), st.sampled_from(alike("a", "b", "c"))), max_size=12))
def test_any_chunks_of_text_say_what_they_say_one_by_one(chunks: list[str]) -> None:
    """Whatever the text, whoever wrote it, whatever else changes between two of them."""
    deltas, reader = heard(chunks)

    assert reader.failure is None
    told = [json.loads(each) for each in chunks]
    kept = [{name: one[name] for name in one if name not in OURS} for one in told]
    assert lines(deltas) == kept
    said, expected = Transcript(), Transcript()
    for delta in deltas:
        said.add(delta.choices, delta.extra)
    for one in kept:
        expected.add(one["choices"], one)
    assert whole(said) == whole(expected)
    assert (said.spoke, said.characters) == (expected.spoke, expected.characters)


def test_texts_that_come_together_are_one_delta_with_a_line_each() -> None:
    """The first is read; all that follow are known by it."""
    deltas, _ = heard(alike("one ", "two ", "three ", 'fo"ur', system_fingerprint="fp"))

    assert [delta.choices[0]["delta"]["content"] for delta in deltas] == ["one ", 'two three fo"ur']
    assert [len(delta.lines) for delta in deltas] == [1, 3]


def test_a_text_that_stands_elsewhere_too_is_not_taken_for_that() -> None:
    """Which place is the text's is tried, not guessed."""
    [told] = map(json.loads, alike("b"))
    chunks = [json.dumps({"service_tier": tier, **told}) for tier in ("b", "c")]

    deltas, _ = heard(chunks)

    assert lines(deltas) == list(map(json.loads, chunks))
    assert [delta.choices[0]["delta"]["content"] for delta in deltas] == ["b", "b"]


def test_what_else_a_chunk_says_stands_until_another_says_otherwise() -> None:
    """Also when it was said by chunks of text before and after, and by none in between."""
    early, late = (alike(name, name, system_fingerprint="a") for name in ("a", "b"))
    between = {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "system_fingerprint": "b"}

    deltas, _ = heard([*early, json.dumps(between), *late])

    said = Transcript()
    for delta in deltas:
        said.add(delta.choices, delta.extra)
    assert whole(said)["system_fingerprint"] == "a"


def test_a_text_is_kept_in_its_shortest_form() -> None:
    """Some servers write each letter that is not English as six bytes."""
    deltas, _ = heard(alike("a", "ü", "\u4e2d"))

    assert b"".join(line for delta in deltas for line in delta.lines).isascii() is False
    assert all(b"\\u" not in line for delta in deltas for line in delta.lines)


@pytest.mark.parametrize("content", ["null", "5", '\n "b"', "[]"])
def test_what_is_no_plain_string_is_read(content: str) -> None:
    """A content of another kind, and an event whose data has several lines."""
    first, last = alike("a", "TEXT")
    odd = last.replace('"TEXT"', content)

    together, reader = heard([first, odd.replace("\n", "\ndata: ")])

    alone, other = heard([odd.replace("\n", "\ndata: ")])
    assert lines(together)[1:] == lines(alone)
    assert (reader.failure is None) is (other.failure is None)
    assert not any(b"\n" in line for delta in together for line in delta.lines)


@pytest.mark.parametrize(
    "inside",
    [
        'b"},"finish_reason":"stop","more":{"content":"c',
        'b","content":"c',
        'b", "tool_calls": [], "x": "c',
    ],
)
def test_what_only_begins_and_ends_like_a_text_is_read(inside: str) -> None:
    """A string is one string: what closes it and goes on is another chunk."""
    first, second = alike("a", "TEXT")

    deltas, reader = heard([first, second.replace("TEXT", inside)])

    assert reader.failure is None
    assert lines(deltas)[1] == json.loads(second.replace("TEXT", inside))


@pytest.mark.parametrize("odd", ["", "\\u00fc", '"', '","', '\\"', "\\", '"], ["'])
@pytest.mark.parametrize("place", [0, 1, 70, 199])
def test_one_that_is_odd_changes_none_of_its_many_neighbours(odd: str, place: int) -> None:
    """Those before and after it are what they were, and it is what it is by itself."""
    chunks = alike(*(f"text {number} " for number in range(200)))
    [chunks[place]] = [alike("TEXT")[0].replace("TEXT", odd)]

    together, reader = heard(chunks)

    apart = ChatEvents(1, None)
    alone = [delta for one in chunks for delta in apart.feed(f"data: {one}\n\n".encode())]
    assert lines(together) == lines(alone)[: len(lines(together))]
    assert (reader.failure is None) is (apart.failure is None)
    if reader.failure is None:
        assert lines(together) == list(map(json.loads, chunks))
    else:
        assert len(lines(together)) == place


@pytest.mark.parametrize("broken", ["\\ud800", "\\x", "\t"])
def test_what_is_no_text_is_the_failure_that_it_is_without_its_neighbours(broken: str) -> None:
    """What came before it is heard."""
    first, second, third = alike("a", "b", "TEXT")

    deltas, reader = heard([first, second, third.replace("TEXT", broken)])

    assert reader.failure is not None
    assert lines(deltas) == list(map(json.loads, [first, second]))
