"""Server-sent events out of the network's pieces, wherever those were cut."""

from shared.errors import UpstreamError

LIMIT = 16 * 1024 * 1024


class SSELines:
    """Reads an event stream; of an event only its `data` stays: no server we call needs more."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._held_size = 0
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of each event that this piece of the stream completes.

        Raises `UpstreamError` when a line, or an event, grows past the limit.
        """
        if not (self._held or self._data) and (plain := _plain(piece)) is not None:
            return plain
        head, newline, tail = piece.rpartition(b"\n")
        payloads: list[bytes] = []
        if newline:
            if self._held:
                head = b"".join((*self._held, head))
                self._held, self._held_size = [], 0
            self._read(head.split(b"\n"), payloads)
        if tail:
            self._held.append(tail)
            self._held_size += len(tail)
        if self._held_size + self._data_size > self._limit:
            raise UpstreamError(f"The upstream sent a line of more than {self._limit} bytes.")
        return payloads

    def end(self) -> list[bytes]:
        """What a stream that was not closed by an empty line still held."""
        return self.feed(b"\n\n")

    def _read(self, lines: list[bytes], payloads: list[bytes]) -> None:
        data = self._data
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
                self._data_size += len(data[-1])
            elif data and not line:
                if payload := b"\n".join(data):
                    payloads.append(payload)
                data.clear()
                self._data_size = 0


def _plain(piece: bytes) -> list[bytes] | None:
    """The data of whole events with a line of data each, as most come; None of any others."""
    if not (piece.startswith(b"data: ") and piece.endswith(b"\n\n")):
        return None
    events = piece[6:-2].split(b"\n\ndata: ")
    if piece.count(b"\n") != 2 * len(events) or b"\r" in piece:
        return None
    return events if all(events) else [event for event in events if event]
