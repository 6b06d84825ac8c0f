"""Every line of a batch's input is held to what a request of its own would be held to."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import lines
from api.lines import Checker, Report, body_check
from shared import catalog
from shared.settings import PACKAGED_CATALOG

CATALOG = catalog.load(PACKAGED_CATALOG)
MODEL = next(iter(CATALOG.models))
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
LINE: dict[str, Any] = {
    "custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY,
}  # fmt: skip
LONGEST = 10_000


def line(**changes: Any) -> bytes:
    """A good line but for the changes."""
    return orjson.dumps({**LINE, **changes})


def without(name: str, **body: Any) -> bytes:
    """A good line without a field of its own or of its body."""
    found = {**LINE, "body": {**BODY, **body}}
    (found if name in found else found["body"]).pop(name)
    return orjson.dumps(found)


def report(*pieces: bytes) -> Report:
    """What is said of an input that comes in these pieces."""
    checked = Checker(body_check(CATALOG, lambda model: None), longest=LONGEST)
    for piece in pieces:
        checked.feed(piece)
    return checked.end()


@pytest.mark.parametrize(
    "wrong, code, param",
    [
        (b"nonsense", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"custom_id": "\\ud800"}', "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (line(deep=[[]] * 66), None, None),
        (b'{"a":' + b"[" * 66 + b"]" * 66 + b"}", "invalid_request", None),
        (line(padding="x" * LONGEST), "invalid_request", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        (without("model"), "missing_required_parameter", "body.model"),
        (without("messages"), "missing_required_parameter", "body.messages"),
        (line(custom_id=""), "invalid_request", "custom_id"),
        (line(custom_id="x" * 65), "invalid_request", "custom_id"),
        (line(custom_id="x" * 64), None, None),
        (line(custom_id="Größe 1"), None, None),
        (line(custom_id="a\nb"), "invalid_request", "custom_id"),
        (line(custom_id=7), "invalid_request", "custom_id"),
        (line(method="GET"), "invalid_request", "method"),
        (line(url="/v1/embeddings"), "mismatched_url", "url"),
        (line(url=["/v1"]), "mismatched_url", "url"),
        (line(body=[]), "invalid_request", "body"),
        (line(body={**BODY, "model": "nobody"}), "model_not_found", "body.model"),
        (line(body={**BODY, "model": 7}), "invalid_request", "body.model"),
        (line(body={**BODY, "stream": True}), "invalid_request", "body.stream"),
        (line(body={**BODY, "stream": False}), None, None),
        (line(body={**BODY, "temperature": 3}), "invalid_request", "body.temperature"),
        (line(body={**BODY, "messages": [{"role": "user"}]}), "invalid_request",
         "body.messages[0].content"),
        (line(more="unknown"), None, None),
    ],
)  # fmt: skip
def test_a_wrong_line_says_what_is_wrong(wrong: bytes, code: str | None, param: str | None) -> None:
    """With its number, a code for programs, and the field to blame."""
    found = report(line(custom_id="good") + b"\n" + wrong)

    if code is None:
        assert (found.lines, found.errors) == (2, [])
    else:
        [error] = found.errors
        assert (error["line"], error["code"], error["param"]) == (2, code, param), error
        assert found.summary == f"Line 2: {error['message']}"


@given(st.lists(st.integers(0, 700)))
def test_pieces_change_nothing(cuts: list[int]) -> None:
    """Lines are the same wherever the network cuts them."""
    content = b"\n".join([line(), line(), b"", b"nonsense", line(custom_id="b"), b""])
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]

    found = report(*(content[a:b] for a, b in pairwise(edges)))
    assert found.lines == 4
    assert [(error["line"], error["code"]) for error in found.errors] == [
        (2, "duplicate_custom_id"), (4, "invalid_json_line"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content", [line(), line() + b"\n", b"\xef\xbb\xbf" + line() + b"\r\n\r\n"]
)
def test_line_ends_may_be_of_any_kind(content: bytes) -> None:
    """The last one may be missing; Windows' are good as well, and so is its byte order mark."""
    assert report(content) == Report(lines=1, models={MODEL})


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_requests_is_wrong(content: bytes) -> None:
    """It has no line to name."""
    found = report(content)
    assert [(error["code"], error["line"]) for error in found.errors] == [("empty_file", None)]
    assert found.summary == "There is no request in this file."


def test_a_hundred_problems_are_listed_and_all_are_counted() -> None:
    """The rest would only be more of the same."""
    found = report(b"nonsense\n" * 250)
    assert (len(found.errors), found.problems) == (lines.MOST_ERRORS, 250)


def test_no_more_lines_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one too many is named, and what follows is not looked at."""
    monkeypatch.setattr(lines, "MOST_LINES", 3)
    good = [line(custom_id=str(number)) for number in range(5)]
    assert report(b"\n".join(good[:3])).errors == []

    found = report(b"\n".join([*good, b"nonsense"]))
    assert [(error["line"], error["code"]) for error in found.errors] == [
        (4, "too_many_requests_in_file")
    ]
    assert found.lines == 3
