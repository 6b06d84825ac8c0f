"""`Range` as RFC 9110 has it."""

import pytest

from api.ranges import parse_range
from shared.errors import InvalidRequest


@pytest.mark.parametrize(
    "header, span",
    [
        (None, None),
        ("", None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 6)),
        ("BYTES=2-5", (2, 6)),
        ("bytes=2-", (2, 10)),
        ("bytes=-2", (8, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("bytes=٣-٤", None),
        ("items=0-1", None),
    ],
)
def test_one_range_of_ten_bytes(header: str | None, span: tuple[int, int] | None) -> None:
    """What is malformed, or asks for more than one, is as good as absent."""
    assert parse_range(header, 10) == span


@pytest.mark.parametrize("header, size", [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_nothing_in_the_range(header: str, size: int) -> None:
    """416 says how much there is."""
    with pytest.raises(InvalidRequest) as refused:
        parse_range(header, size)
    assert refused.value.status == 416
    assert refused.value.headers == {"content-range": f"bytes */{size}"}
