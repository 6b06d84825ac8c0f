"""A client that costs next to nothing: so many connections, each with one request at a time."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any, Final, cast
from urllib.parse import urlsplit

import orjson

from bench.upstream import MARK

_LAST: Final = b"0\r\n\r\n"
_GOLDEN: Final = 0.6180339887498949
"""Multiples of it, without their whole part, are spread evenly, however many there are."""


@dataclass(slots=True)
class Load:
    """What is asked."""

    url: str
    body: Mapping[str, Any] | Sequence[Any] | None
    """None: it is a GET."""
    path: str = "/v1/chat/completions"
    status: int = 200
    """Of a good answer."""
    key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: int = 1
    requests: int | None = None
    """How many at most; None: as many as there is time for."""
    seconds: float = 4.0
    """For so long new ones begin."""
    ramp: float = 0.0
    """Seconds over which the connections begin, evenly."""
    patience: float = 60.0
    """Seconds after which what has not ended is given up, and counts as an error."""
    words: int = 0
    """How many each stream has; 0: they are not looked at."""


@dataclass(slots=True)
class Seen:
    """What came of it. Times are in seconds."""

    answers: int = 0
    seconds: float = 0.0
    """From the first request to the end of the last answer."""
    words: int = 0
    lasted: list[float] = field(default_factory=list)
    """From each request to the end of its answer."""
    first: list[float] = field(default_factory=list)
    """From each request to its first word."""
    late: list[float] = field(default_factory=list)
    """How old each word was when it came."""
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds if self.seconds else 0.0


class Connection(asyncio.Protocol):
    """One connection of a load; it counts words without taking answers apart."""

    _transport: asyncio.Transport

    def __init__(self, seen: Seen, status: int) -> None:
        self._seen = seen
        self._good = b"%d" % status
        self._over: asyncio.Future[str] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that has not ended is none."""
        self.closed = True
        self._end("the connection was closed")

    def ask(self, request: bytes, words: int) -> asyncio.Future[str]:
        """Send a request; what is wrong with its answer, once that has ended, or nothing."""
        self._over = asyncio.get_running_loop().create_future()
        self._received, self._left, self._words, self._expected = b"", -1, 0, words
        self._status, self._done, self._disorder = b"", False, False
        self._asked_at = monotonic_ns()
        self._transport.write(request)
        return self._over

    def close(self) -> None:
        """Be done with it."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Note the words, and whether that was the end."""
        now = monotonic_ns()
        data = self._received + data
        if not self._status:
            head, complete, body = data.partition(b"\r\n\r\n")
            if not complete:
                self._received = data
                return
            self._status = head[9:12]
            _, sized, rest = head.lower().partition(b"\r\ncontent-length:")
            self._left = int(rest.partition(b"\r")[0]) if sized else -1
            data, self._received = body, b""
        if self._left >= 0:
            self._whole(data)
        else:
            self._piece(data, now)

    def _whole(self, data: bytes) -> None:
        self._received = data
        if len(data) >= self._left:
            good = self._status == self._good
            self._end("" if good else f"{self._status.decode()} {data[:200]!r}")

    def _piece(self, data: bytes, now: int) -> None:
        """Part of a stream: whole lines are read, the rest waits for the next piece."""
        if self._expected:
            cut = data.rfind(b"\n") + 1
            for sent_at, number in MARK.findall(data, 0, cut):
                self._note(int(sent_at), int(number), now)
        self._done = self._done or b"[DONE]" in data
        if data.endswith(_LAST):
            self._end(self._verdict())
        else:
            self._received = data[data.rfind(b"\n") + 1 :]

    def _note(self, sent_at: int, number: int, now: int) -> None:
        if not self._words:
            self._seen.first.append((now - self._asked_at) / 1e9)
        self._disorder |= number != self._words
        self._words += 1
        self._seen.words += 1
        self._seen.late.append((now - sent_at) / 1e9)

    def _verdict(self) -> str:
        if self._status != self._good:
            return self._status.decode()
        if self._disorder or self._words != self._expected:
            return f"{self._words} of {self._expected} words, or not in order"
        return "" if self._done or not self._expected else "no [DONE]"

    def _end(self, wrong: str) -> None:
        if self._over is not None and not self._over.done():
            if not wrong:
                self._seen.lasted.append((monotonic_ns() - self._asked_at) / 1e9)
            self._over.set_result(wrong)


async def run(load: Load) -> Seen:
    """Ask, and wait for the answers."""
    seen = Seen()
    begun = _Begun(load)
    began = time.monotonic()
    callers = [
        asyncio.create_task(_caller(load, seen, begun, load.ramp * (number * _GOLDEN % 1)))
        for number in range(load.connections)
    ]
    done, late = await asyncio.wait(callers, timeout=load.patience)
    seen.seconds = time.monotonic() - began
    for caller in late:
        caller.cancel()
        seen.errors["not ended in time"] += 1
    await asyncio.gather(*late, return_exceptions=True)
    for caller in done:
        caller.result()
    return seen


class _Begun:
    """Whether another request may begin."""

    def __init__(self, load: Load) -> None:
        self._left = load.requests
        self._until = time.monotonic() + load.seconds

    def another(self) -> bool:
        if self._left is not None:
            self._left -= 1
            return self._left >= 0
        return time.monotonic() < self._until


async def _caller(load: Load, seen: Seen, begun: _Begun, after: float) -> None:
    request = encoded(load)
    await asyncio.sleep(after)
    connection = await _connect(load, seen)
    try:
        while begun.another():
            if connection.closed:
                connection = await _connect(load, seen)
            if wrong := await connection.ask(request, load.words):
                seen.errors[wrong] += 1
                connection.close()
            else:
                seen.answers += 1
    finally:
        connection.close()


async def _connect(load: Load, seen: Seen) -> Connection:
    where = urlsplit(load.url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: Connection(seen, load.status), where.hostname or "", where.port or 80
    )
    return connection


def encoded(load: Load) -> bytes:
    """The request, as it goes out."""
    where, body = urlsplit(load.url), b"" if load.body is None else orjson.dumps(load.body)
    sized = ["content-type: application/json", f"content-length: {len(body)}"] if body else []
    head = [
        f"{'POST' if body else 'GET'} {where.path}{load.path} HTTP/1.1",
        f"host: {where.netloc}",
        *sized,
        *([f"authorization: Bearer {load.key}"] if load.key else []),
        *(f"{name}: {value}" for name, value in load.headers.items()),
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
