"""`Range`: the one part of a content that a client asks for (RFC 9110, section 14)."""

import re

from shared.errors import InvalidRequest

_RANGE = re.compile(r"bytes=\s*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))\s*", re.IGNORECASE)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte of the part, and the one after its last; None is the whole content.

    A header we do not understand, or one that asks for several parts, may be ignored, and is.
    Raises `InvalidRequest` (416) when nothing of the content is in the range.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise InvalidRequest(
            f"The range is outside of the content, which has {size:,} bytes.",
            status=416,
            code="range_not_satisfiable",
            headers={"content-range": f"bytes */{size}"},
        )
    return start, end
