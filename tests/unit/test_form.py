"""A form comes out as it went in, wherever the network cuts it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.form import LONGEST_FIELD, MOST_FIELDS, STEP, Form
from shared.errors import InvalidRequest, UnsupportedMediaType

BOUNDARY = "b-0"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
Read = tuple[str, bytes, dict[str, str]]


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    """One part of a form."""
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def read(chunks: Sequence[bytes], content_type: str | None = TYPE) -> Read:
    """All there is in a form."""

    async def arriving() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> Read:
        form = Form(arriving(), content_type)
        name = await form.filename()
        content = b"".join([piece async for piece in form.content()])
        return name, content, await form.fields()

    return asyncio.run(run())


@given(
    content=st.lists(
        st.sampled_from([b"\r\n", b"--", BOUNDARY.encode(), b"\r\n--b-", b"\n", b"x", b"\0\xff"])
    ).map(b"".join),
    cuts=st.lists(st.integers(0, 400)),
    file_first=st.booleans(),
)
def test_cuts_change_nothing(content: bytes, cuts: list[int], file_first: bool) -> None:
    """Not in the middle of a boundary either, nor in what only looks like one."""
    if b"\r\n--b-0" in b"\r\n" + content:
        content = content.replace(b"--", b"++")
    parts = [part("purpose", b"batch"), part("file", content, "a.jsonl")]
    body = b"".join(parts[::-1] if file_first else parts) + END
    edges = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})

    chunks = [body[start:end] for start, end in pairwise(edges)]
    assert read(chunks) == ("a.jsonl", content, {"purpose": "batch"})


def test_a_large_file_comes_in_steps() -> None:
    """No step is much longer than it should be."""
    body = part("file", b"x" * 5 * STEP, "a") + END
    chunks = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]

    async def run() -> list[int]:
        async def arriving() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        form = Form(arriving(), TYPE)
        await form.filename()
        return [len(piece) async for piece in form.content()]

    lengths = asyncio.run(run())
    assert sum(lengths) == 5 * STEP
    assert max(lengths) < STEP + 65_536


@pytest.mark.parametrize(
    "sent, kept",
    [
        ("in.jsonl", "in.jsonl"),
        ("übung 1.jsonl", "übung 1.jsonl"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\0b", "a\ufffdb"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
        ("", "file"),
        (None, "file"),
    ],
)
def test_a_file_keeps_its_name(sent: str | None, kept: str) -> None:
    """It is only ever shown, so anything goes that can be stored."""
    assert read([part("file", b"1", sent) + END])[0] == kept


@pytest.mark.parametrize(
    "body, param",
    [
        (b"", None),
        (b"{}", None),
        (END, "file"),
        (part("purpose", b"batch") + END, "file"),
        (part("file", b"1"), None),
        (part("file", b"1") + part("file", b"2") + END, "file"),
        (part("a", b"1") + part("a", b"2") + part("file", b"") + END, "a"),
        (part("a", b"x" * (LONGEST_FIELD + 1)) + part("file", b"") + END, "a"),
        (b"".join(part(f"a{n}", b"") for n in range(MOST_FIELDS + 1)) + END, None),
        (part("file", b"1").replace(b"\r\n\r\n", b": x\r\n" * 20) + END, None),
    ],
)
def test_a_broken_form_is_refused(body: bytes, param: str | None) -> None:
    """Broken off, empty, twice the same, too much: none is a 500."""
    with pytest.raises(InvalidRequest) as refused:
        read([body])
    assert refused.value.param == param


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "multipart/form-data", "multipart/mixed; boundary=b-0"],
)
def test_another_kind_of_body_is_refused(content_type: str | None) -> None:
    """A file comes in a form."""
    with pytest.raises(UnsupportedMediaType):
        read([part("file", b"1") + END], content_type)
