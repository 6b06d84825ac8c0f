"""Events out of bytes that were cut anywhere."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UpstreamError
from workers.upstreams.lines import SSELines


def read(*pieces: bytes) -> list[bytes]:
    """The payloads of these pieces in order, with the end."""
    lines = SSELines()
    return [payload for piece in pieces for payload in lines.feed(piece)] + lines.end()


@pytest.mark.parametrize(
    "raw, payloads",
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": ping\n\ndata: a\n: ping\n\n", [b"a"]),
        (b"id: 1\nevent: error\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"data:\n\ndata: \n\ndata: a\n\n", [b"a"]),
        (b"data\n\ndatax: b\n\n", []),
        (b"data: a\n\ndata: \n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\n", [b"a"]),
        (b"data: a", [b"a"]),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_what_is_data_and_what_is_not(raw: bytes, payloads: list[bytes]) -> None:
    """Comments, other fields and empty events are passed over."""
    assert read(raw) == payloads


@st.composite
def cut(draw: st.DrawFn) -> tuple[list[str], list[bytes]]:
    """JSON payloads, and the stream that says them, in pieces."""
    said = draw(st.lists(st.text(min_size=1, alphabet='aü😀\\" \u2028:'), max_size=6))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    comment = draw(st.sampled_from(["", f": ping{newline}", f": ping{newline}{newline}"]))
    space = draw(st.sampled_from(["", " "]))
    events = [
        f"{comment}data:{space}{json.dumps(text, ensure_ascii=False)}{newline}{newline}"
        for text in said
    ]
    raw = "".join(events).encode()
    places = draw(st.lists(st.integers(0, len(raw)), max_size=12))
    edges = [0, *sorted(places), len(raw)]
    return said, [raw[a:b] for a, b in pairwise(edges)]


@given(cut())
def test_where_the_network_cuts_the_stream_changes_nothing(
    case: tuple[list[str], list[bytes]],
) -> None:
    """Inside a letter, inside CRLF, inside `data:`: the payloads are the same."""
    said, pieces = case

    assert [json.loads(payload) for payload in read(*pieces)] == said


@pytest.mark.parametrize(
    "pieces, payloads",
    [
        ([b"data: a", b"data: b\n\n"], [b"adata: b"]),
        ([b"data: a\n", b"data: b\n\n"], [b"a\nb"]),
        ([b"data: a\n\ndata: b", b"\n", b"\n", b"data: c\n\n"], [b"a", b"b", b"c"]),
    ],
)
def test_what_has_begun_before_goes_on(pieces: list[bytes], payloads: list[bytes]) -> None:
    """Also with a piece that would be whole events by itself."""
    assert read(*pieces) == payloads


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_no_bytes_break_the_reader(pieces: list[bytes]) -> None:
    """Noise gives some payloads or none."""
    assert all(isinstance(payload, bytes) for payload in read(*pieces))


@pytest.mark.parametrize("piece", [b"x" * 50, b"data: " + b"x" * 40 + b"\n"])
def test_a_line_that_never_ends_is_refused(piece: bytes) -> None:
    """Neither an endless line nor an event of endless lines may fill the memory."""
    lines = SSELines(limit=1000)

    with pytest.raises(UpstreamError, match="more than 1000 bytes"):
        [lines.feed(piece) for _ in range(100)]
