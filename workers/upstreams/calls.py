"""One streamed call over HTTP, the same for every dialect: opened, read against time, refused."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from typing import Final, Protocol

from multidict import CIMultiDict
from yarl import URL

from shared.catalog import UpstreamEntry
from shared.errors import UpstreamError, UpstreamTimeout
from workers.upstreams import failures
from workers.upstreams.connections import Connection, Connections, Origin, TooLate
from workers.upstreams.protocol import Delta, Timeouts

ERROR_BODY: Final = 64 * 1024
FAREWELL: Final = 0.05
"""Seconds for the body to end after its last event: a connection read to its end is used again."""


class Reader(Protocol):
    """What a dialect makes of an answer's bytes."""

    failure: UpstreamError | None
    """What went wrong in the stream; raised after the deltas that came before it."""
    done: bool
    """The server has said goodbye."""

    @property
    def complete(self) -> bool:
        """Whether all is said, so that a missing goodbye would hurt nobody."""
        ...

    def feed(self, piece: bytes) -> list[Delta]:
        """The deltas this piece completes; an empty piece is the end. A failure is noted."""
        ...

    def check_ending(self) -> None:
        """Raise `UpstreamDisconnected` if the model did not say why it ended."""
        ...


class Caller:
    """Posts requests to one server and reads what it streams back."""

    def __init__(
        self,
        connections: Connections,
        entry: UpstreamEntry,
        *,
        headers: Mapping[str, str],
        secret: str | None,
        timeouts: Timeouts,
    ) -> None:
        self._connections = connections
        self._base_url, self._query = entry.base_url.rstrip("/"), entry.query
        base = URL(self._base_url)
        self._origin = Origin(base.raw_host or "", base.port or 0, base.scheme == "https")
        self._secret = secret
        self._timeouts = timeouts
        # Compressed events would wait in the compressor's buffer.
        self._headers = CIMultiDict(
            {
                "Host": base.host_port_subcomponent or "",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "User-Agent": "Sluice",
                "Content-Type": "application/json",
            }
        )
        if base.user is not None:
            name = f"{base.user}:{base.password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(name).decode()}"
        self._headers.update(headers)
        self._headers.update(entry.headers)
        self._head = lru_cache(self._head_of)

    async def stream(
        self, path: str, body: bytes, reader_for: Callable[[str], Reader]
    ) -> AsyncGenerator[list[Delta], None]:
        """What the reader for the answer's content type finds in it, to the end.

        Closing the generator closes the connection. Raises `UpstreamError`.
        """
        asked = b"%b%d\r\n\r\n%b" % (self._head(path), len(body), body)
        connection = self._connections.free(self._origin) or await self._connect()
        status = None  # that of an answer whose body has begun
        try:
            connection.ask(asked)
            del body, asked  # which may be large; the answer may take minutes
            piece = await self._read(connection)
            if (status := connection.status) != 200:
                raise await self._refusal(connection, piece)
            reader = reader_for(_content_type(connection))
            while True:
                deltas = reader.feed(piece)
                if deltas:
                    connection.pause()
                    yield deltas
                    connection.resume()
                if reader.failure is not None:
                    raise reader.failure
                if reader.done or not piece:
                    break
                piece = await self._read(connection, reader)
            reader.check_ending()
            await _part(connection)
        except UpstreamError as error:
            error.upstream_status = status
            raise
        finally:
            connection.done()

    async def _connect(self) -> Connection:
        limit = self._timeouts.connect
        try:
            async with asyncio.timeout(limit.total_seconds()):
                return await self._connections.open(self._origin)
        except TimeoutError as error:
            raise _timeout("no connection", limit) from error
        except OSError as error:
            raise failures.unreachable(error) from error

    async def _read(self, connection: Connection, reader: Reader | None = None) -> bytes:
        """The next bytes; nothing at the end of the body. `reader`: None for the first of them."""
        limit = self._timeouts.silence if reader else self._timeouts.first_byte
        try:
            return await connection.read(limit.total_seconds())
        except OSError as error:
            if reader and reader.complete:
                # All is said; that the goodbye is missing hurts nobody.
                return b""
            if isinstance(error, TooLate):
                raise _timeout("silence" if reader else "no first byte", limit) from error
            raise failures.broken() from error

    async def _refusal(self, connection: Connection, piece: bytes) -> UpstreamError:
        body = bytearray(piece)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(self._timeouts.silence.total_seconds()):
                while piece and len(body) < ERROR_BODY:
                    piece = await connection.read()
                    body += piece
        headers = connection.headers
        return failures.refusal(connection.status, bytes(body), headers, secret=self._secret)

    def _head_of(self, path: str) -> bytes:
        """All of a request's head but the length of its body. Raises `ValueError`."""
        where = URL(self._base_url + path).update_query(self._query).raw_path_qs
        lines = [f"POST {where} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        if any(each in line for line in lines for each in "\r\n\0"):
            raise ValueError("a header, perhaps the key, has a line break in it")
        return "\r\n".join([*lines, "Content-Length: "]).encode()


def _content_type(connection: Connection) -> str:
    return connection.headers.get("content-type", "").partition(";")[0].strip().lower()


def _timeout(what: str, limit: timedelta) -> UpstreamTimeout:
    return UpstreamTimeout(f"The upstream timed out: {what} for {limit.total_seconds():g} s.")


async def _part(connection: Connection) -> None:
    if connection.at_end:  # as of most
        return
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(FAREWELL):
            while await connection.read():
                pass
