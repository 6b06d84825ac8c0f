"""A strict reader of our event streams: what a real parser might stumble over fails a test."""

from collections.abc import Iterable, Iterator
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


class Framing:
    """Frames from bytes, piece by piece; comments may stand only where a frame could begin."""

    def __init__(self) -> None:
        self.rest = b""
        """What has come of a frame that is not whole yet."""

    def feed(self, piece: bytes) -> Iterator[Frame]:
        """The frames that are whole with this piece."""
        self.rest += piece
        while True:
            while self.rest.startswith(b": "):
                comment, found, rest = self.rest.partition(b"\n")
                if not found:
                    break
                assert comment == b": ping", comment
                self.rest = rest
            whole, found, rest = self.rest.partition(b"\n\n")
            if not found or self.rest.startswith(b":"):
                break
            self.rest = rest
            yield _frame(whole.decode())


def frames(pieces: Iterator[bytes]) -> Iterator[Frame]:
    """Frames from the bytes of a stream that ends between two of them."""
    framing = Framing()
    for piece in pieces:
        yield from framing.feed(piece)
    assert framing.rest == b"", framing.rest


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


def text_of(seen: Iterable[Frame]) -> str:
    """What chunks, or native deltas, say."""
    choices = [choice for frame in seen for choice in (frame.json or {}).get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
