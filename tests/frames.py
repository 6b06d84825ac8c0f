"""A strict reader of our event streams: what a real parser might stumble over fails a test."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Frame:
    """One event as it came."""

    id: int | None
    event: str | None
    data: str
    retry: int | None = None

    @property
    def json(self) -> Any:
        """Its data as JSON; None for `[DONE]`."""
        return None if self.data == "[DONE]" else orjson.loads(self.data)


def frames(pieces: Iterator[bytes]) -> Iterator[Frame]:
    """Frames from the bytes of a stream. Comments may stand only where a frame could begin."""
    buffer = b""
    for piece in pieces:
        buffer += piece
        while True:
            while buffer.startswith(b": "):
                comment, found, rest = buffer.partition(b"\n")
                if not found:
                    break
                assert comment == b": ping", comment
                buffer = rest
            whole, found, rest = buffer.partition(b"\n\n")
            if not found or buffer.startswith(b":"):
                break
            buffer = rest
            yield _frame(whole.decode())
    assert buffer == b"", buffer


def _frame(text: str) -> Frame:
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, found, value = line.partition(": ")
        assert found, text
        assert name not in fields, text
        fields[name] = value
    assert set(fields) <= {"id", "event", "data", "retry"}, text
    assert "data" in fields, text
    return Frame(
        id=int(fields["id"]) if "id" in fields else None,
        event=fields.get("event"),
        data=fields["data"],
        retry=int(fields["retry"]) if "retry" in fields else None,
    )
