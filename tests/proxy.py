"""A TCP link that tests cut, hang and mend: a proxy on loopback, in a thread of its own.

    with Link.to(database_url) as link:
        engine = db.connect(through(database_url, link))
        link.cut()

It knows just enough of PostgreSQL's protocol to swallow the answer to a COMMIT.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

NEGOTIATIONS = {b"\0\0\0\x08\x04\xd2\x16\x2f", b"\0\0\0\x08\x04\xd2\x16\x30"}
"""SSLRequest and GSSENCRequest: the server's answer to each is a single byte."""
COMMITTED = b"C\0\0\0\x0bCOMMIT\0"
WITHIN = 10.0


class Link:
    """A way to a port of 127.0.0.1, or to a Unix socket; a context manager."""

    def __init__(self, target: int | Path) -> None:
        self.lost = 0
        """Answers to COMMITs that were swallowed."""
        self._target = target
        self._to_lose = 0
        self._hung = False
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        # Never listens: it keeps the port ours while nobody does.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]

    @classmethod
    def to(cls, url: str) -> "Link":
        """A link to the server that this URL names."""
        parts = make_url(url)
        folder = parts.query.get("host")
        if isinstance(folder, str):
            return cls(Path(folder) / f".s.PGSQL.{parts.port or 5432}")
        assert parts.port is not None
        return cls(parts.port)

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._run(self._cut)

    def hang(self) -> None:
        """Keep connections and take new ones, but pass nothing on, not even their end."""
        self._hung = True

    def mend(self) -> None:
        """Work again; what was sent while it hung is lost, so what was open is closed."""
        self._run(self._mend)

    def drop(self) -> None:
        """Close the connections there are."""
        self._run(self._drop)

    def lose_commits(self, times: int) -> None:
        """Swallow PostgreSQL's answers to the next so many COMMITs, and close those connections."""
        self._to_lose = times

    def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(WITHIN)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._connected, "127.0.0.1", self.port, reuse_address=True
            )

    async def _cut(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            for listening in server.sockets:
                self._loop.remove_reader(listening)
            # Who was let in this moment is joined first: `close` would lose hold of its socket.
            await asyncio.sleep(0)
            server.close()
        await self._drop()

    async def _mend(self) -> None:
        if self._hung:
            self._hung = False
            await self._drop()
        await self._listen()

    async def _drop(self) -> None:
        ending = list(self._connections)
        for connection in ending:
            connection.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with suppress(OSError, asyncio.CancelledError), closing(writer.transport):
            if self._server is not None:
                await self._join(reader, writer)
        self._connections.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self._target, Path):
            there, back = await asyncio.open_unix_connection(self._target)
        else:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        answers = _Answers()
        with closing(back.transport):
            ways = [
                asyncio.create_task(self._pass(reader, back, answers.expected_by)),
                asyncio.create_task(self._pass(there, writer, answers.read)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pieces: Callable[[bytes], Iterator[bytes]],
    ) -> None:
        while data := await reader.read(65_536):
            for piece in pieces(data):
                if piece == COMMITTED and self._to_lose > 0:
                    self._to_lose -= 1
                    self.lost += 1
                    return
                await self._held()
                writer.write(piece)
            await writer.drain()
        await self._held()

    async def _held(self) -> None:
        if self._hung:
            await asyncio.Event().wait()

    def __enter__(self) -> "Link":
        self._thread.start()
        self._run(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._cut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN)
        self._loop.close()
        self._reserved.close()


class _Answers:
    """Cuts what a PostgreSQL server says into messages, and passes other protocols on as is."""

    def __init__(self) -> None:
        self._framed: bool | None = None
        self._bytes_due = 0
        self._rest = b""

    def expected_by(self, data: bytes) -> Iterator[bytes]:
        """What the client says, unchanged: only PostgreSQL's begins with a length below 2**24."""
        if self._framed is None:
            self._framed = data[0] == 0
        self._bytes_due += data in NEGOTIATIONS
        yield data

    def read(self, data: bytes) -> Iterator[bytes]:
        """The whole messages that are there by now."""
        if not self._framed:
            yield data
            return
        self._rest += data
        while length := self._length():
            piece, self._rest = self._rest[:length], self._rest[length:]
            yield piece

    def _length(self) -> int:
        """Of the next message, or 0 while it is not complete."""
        if self._bytes_due and self._rest:
            self._bytes_due -= 1
            # Encrypted from here on: there is nothing to be seen.
            self._framed = self._rest[:1] not in (b"S", b"G")
            return 1
        length = 1 + int.from_bytes(self._rest[1:5]) if len(self._rest) >= 5 else 0
        return length if length <= len(self._rest) else 0


def through(url: str, link: Link) -> str:
    """The URL of the same PostgreSQL or Redis, reached over the link."""
    parts: Any = make_url(url)
    parts = parts.set(host="127.0.0.1", port=link.port).difference_update_query(["host", "port"])
    return str(parts.render_as_string(hide_password=False))
