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
        head, newline, tail = piece.rpartition(b"\n")
        payloads: list[bytes] = []
        if newline:
            self._held.append(head)
            whole = b"".join(self._held)
            self._held, self._held_size = [], 0
            for line in whole.split(b"\n"):
                self._read(line, payloads)
        if tail:
            self._held.append(tail)
            self._held_size += len(tail)
        if self._held_size + self._data_size > self._limit:
            raise UpstreamError(f"The upstream sent a line of more than {self._limit} bytes.")
        return payloads

    def end(self) -> list[bytes]:
        """What a stream that was not closed by an empty line still held."""
        return self.feed(b"\n\n")

    def _read(self, line: bytes, payloads: list[bytes]) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b" ", 5) else line[5:]
            self._data.append(value)
            self._data_size += len(value)
        elif not line and self._data:
            payload = b"\n".join(self._data)
            self._data, self._data_size = [], 0
            if payload:
                payloads.append(payload)
