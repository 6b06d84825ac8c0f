"""Read server-sent events (WHATWG HTML §9.2) from the bytes of a response."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `id` is the last one seen so far."""

    data: str
    name: str = "message"
    id: str | None = None


def events(chunks: Iterable[bytes], last_id: str | None = None) -> Iterator[Event]:
    """The events in a stream of bytes, each as soon as it is complete.

    What follows the last blank line was cut off, and is dropped.
    """
    name, data = "", list[str]()
    for line in lines(chunks):
        if not line:
            if data:
                yield Event("\n".join(data), name or "message", last_id)
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            last_id = value


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Split at LF and CR LF only: JSON may hold any other character that some call a line end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
