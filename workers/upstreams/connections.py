"""Connections to upstreams: HTTP/1.1, a request at a time on each, kept for the next (ADR 30).

Names are looked up once a minute, and a server's addresses are tried side by side.
"""

import asyncio
import math
import socket
import ssl
import time
import zlib
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self, cast

import httptools
from aiohappyeyeballs import start_connection

IDLE: Final = 15.0
"""Seconds for which a connection is kept that nobody uses; many servers close it soon after."""
KNOWN_FOR: Final = 60.0
"""Seconds for which the addresses of a name are known."""
NEXT_ADDRESS: Final = 0.25
"""Seconds that one address has before the next is tried beside it."""
HEAD_LIMIT: Final = 64 * 1024
"""Bytes of an answer before its body."""
UNPACKED_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that a single read may become when it is unpacked."""
ANY_PACKING: Final = zlib.MAX_WBITS | 32
"""zlib's word for: gzip or deflate, by what it begins with."""


class TooLate(OSError):
    """Nothing has come in time."""


class Origin(NamedTuple):
    """Where a server is."""

    host: str
    port: int
    tls: bool


class Connections:
    """Those of a process. Needs the running loop; closed when nobody calls any more."""

    def __init__(self, *, idle: float = IDLE) -> None:
        self.made = 0
        """How many there have been."""
        self.loop = asyncio.get_running_loop()
        self._longest = idle
        self._idle: dict[Origin, list[Connection]] = {}
        self._names: dict[Origin, tuple[float, asyncio.Future[list[Any]]]] = {}
        self._tls: ssl.SSLContext | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    def free(self, origin: Origin) -> "Connection | None":
        """One that is kept, if there is any: the one used last, as the others may get too old."""
        idle = self._idle.get(origin)
        return idle.pop() if idle and idle[-1].idle_since > self._too_old() else None

    def keep(self, connection: "Connection") -> None:
        """For whoever asks next."""
        connection.idle_since = self.loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self._longest, self._sweep)

    def forget(self, connection: "Connection") -> None:
        """It is no more."""
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Close those that nobody uses."""
        self._close(self.loop.time())
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _too_old(self) -> float:
        return self.loop.time() - self._longest

    def _sweep(self) -> None:
        self._close(self._too_old())
        kept = any(self._idle.values())
        self._sweeping = self.loop.call_later(self._longest, self._sweep) if kept else None

    def _close(self, upto: float) -> None:
        for idle in list(self._idle.values()):
            for each in [each for each in idle if each.idle_since <= upto]:
                each.close()

    async def open(self, origin: Origin) -> "Connection":
        """A new one. Raises `OSError`."""
        sock = await start_connection(
            await self._addresses(origin), happy_eyeballs_delay=NEXT_ADDRESS, loop=self.loop
        )
        try:
            _, connection = await self.loop.create_connection(
                lambda: Connection(self, origin),
                sock=sock,
                ssl=self._trusted() if origin.tls else None,
                server_hostname=origin.host if origin.tls else None,
            )
        except BaseException:
            with suppress(OSError, RuntimeError):  # the loop may have taken it
                sock.close()
            raise
        self.made += 1
        return connection

    async def _addresses(self, origin: Origin) -> list[Any]:
        until, found = self._names.get(origin, (0.0, None))
        if found is None or until < time.monotonic():
            asked = self.loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
            found = asyncio.ensure_future(asked)
            found.add_done_callback(_heard)
            self._names[origin] = time.monotonic() + KNOWN_FOR, found
        try:
            return await asyncio.shield(found)
        except OSError:
            self._names.pop(origin, None)
            raise

    def _trusted(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _heard(found: "asyncio.Future[Any]") -> None:
    """Whoever asked may have gone."""
    if not found.cancelled():
        found.exception()


class Connection(asyncio.Protocol):
    """One of them: ask, then read to the end, then say that you are done."""

    def __init__(self, connections: Connections, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.status = 0
        """Of the answer; 0 while it has none."""
        self.headers: dict[str, str] = {}
        """By their names in lower case."""
        self.at_end = True
        """The whole answer has come, though it may not have been read."""
        self._connections = connections
        self._loop = connections.loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._pieces: list[bytes] = []
        self._reading: asyncio.Future[None] | None = None
        self._broken: OSError | None = None
        self._in_use = False
        self._again = False
        """It may be used once more."""
        self._sized = False
        """The answer says where it ends."""
        self._packed: Any = None
        self._head_left = 0
        self._paused = False
        self._until = math.inf
        """When a read has waited too long, by the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        """One for many reads: one for each would cost as much as the read."""

    def ask(self, request: bytes) -> None:
        """Send a request, head and body."""
        self._in_use, self.at_end, self.status, self.headers = True, False, 0, {}
        self._sized, self._again, self._packed = False, False, None
        self._head_left = HEAD_LIMIT
        self._transport.write(request)

    async def read(self, within: float | None = None) -> bytes:
        """The next bytes of the body; nothing at its end. Raises `OSError`.

        `TooLate` if there are none within so many seconds; the connection is closed then.
        """
        if not (self._pieces or self.at_end or self._broken):
            if within is not None:
                self._expect(self._loop.time() + within)
            self._reading = self._loop.create_future()
            await self._reading
            self._until = math.inf
        if self._pieces:
            piece = b"".join(self._pieces)
            self._pieces.clear()
            return piece
        if not self.at_end and self._broken is not None:
            raise self._broken
        return b""

    def pause(self) -> None:
        """Let what comes wait in the system, until `resume`: it will come as one, and each read has
        its price, whoever waits for it."""
        if not self.at_end and not self._transport.is_closing():
            self._transport.pause_reading()
            self._paused = True

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self._transport.is_closing():
            self._transport.resume_reading()
        self._paused = False

    def done(self) -> None:
        """Keep it for another request, if this one's answer has come to its end."""
        self._in_use, self._until = False, math.inf
        self._pieces.clear()
        still = self._transport.get_write_buffer_size() == 0 and not self._paused
        if self.at_end and self._again and still and not self._transport.is_closing():
            self._connections.keep(self)
        else:
            self.close()

    def close(self) -> None:
        """Close it at once, whatever is on its way."""
        self._break(ConnectionAbortedError("closed by us"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of an answer that has no other; of any other, half of one."""
        if self._in_use and self.status and not self._sized and exc is None and not self._broken:
            self.at_end = True
        self._break(exc if isinstance(exc, OSError) else ConnectionResetError("closed by them"))

    def data_received(self, data: bytes) -> None:
        """Part of an answer."""
        if not self._in_use:  # nobody asked for that
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(OSError(f"not understood: {type(error).__name__}"))
        if not self.status:
            self._head_left -= len(data)
            if self._head_left < 0:
                self._break(OSError("an endless head"))
        if self._pieces or self.at_end:
            self._wake()

    def on_message_begin(self) -> None:
        """A second answer, while there was one request, spoils the connection."""
        self._again = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the headers; of several with a name the first counts, and none after the body."""
        if not self.status:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """What kind of an answer it is."""
        if self.status:  # a second answer, which nobody asked for
            return
        if (status := self._parser.get_status_code()) < 200:  # the answer is still to come
            self.headers = {}
            return
        self.status = status
        chunked = self.headers.get("transfer-encoding", "").lower().endswith("chunked")
        self._sized = chunked or "content-length" in self.headers
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            self._packed = zlib.decompressobj(ANY_PACKING)

    def on_body(self, body: bytes) -> None:
        """Some of it."""
        if self.at_end or not self.status:
            return
        if self._packed is not None:
            body = self._packed.decompress(body, UNPACKED_LIMIT)
            if self._packed.unconsumed_tail:
                raise zlib.error("too much")
        if body:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The end, unless that was only news of what is to come."""
        if self.status and not self.at_end:
            self.at_end, self._again = True, self._parser.should_keep_alive()

    def _expect(self, until: float) -> None:
        self._until = until
        if self._timer is None or self._timer.when() > until:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(until, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._until:
            self._break(TooLate())
        elif self._until < math.inf:
            self._expect(self._until)

    def _break(self, error: OSError) -> None:
        self._broken = self._broken or error
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._connections.forget(self)
        self._wake()

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)
