"""One streamed call over HTTP, the same for every dialect: opened, read against time, refused."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Final, Protocol

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from shared.catalog import UpstreamEntry
from shared.errors import UpstreamError, UpstreamTimeout
from workers.upstreams import failures
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
        session: aiohttp.ClientSession,
        entry: UpstreamEntry,
        *,
        headers: Mapping[str, str],
        secret: str | None,
        timeouts: Timeouts,
    ) -> None:
        self._session = session
        base_url, query = entry.base_url.rstrip("/"), entry.query
        self._address = lru_cache(lambda path: URL(base_url + path).update_query(query))
        self._secret = secret
        self._timeouts = timeouts
        connect = timeouts.connect.total_seconds()
        self._client_timeout = aiohttp.ClientTimeout(
            total=None, connect=connect, sock_connect=connect
        )
        # Compressed events would wait in the compressor's buffer.
        self._headers = CIMultiDict(
            {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        )
        self._headers.update(headers)
        self._headers.update(entry.headers)

    async def stream(
        self, path: str, body: bytes, reader_for: Callable[[str], Reader]
    ) -> AsyncGenerator[list[Delta], None]:
        """What the reader for the answer's content type finds in it, to the end.

        Closing the generator closes the connection. Raises `UpstreamError`.
        """
        response, piece = await self._open(path, body)
        del body  # which may be large; the answer may take minutes
        silence = _Silence(response, self._timeouts.silence)
        try:
            if response.status != 200:
                raise await self._refusal(response, piece)
            reader = reader_for(response.content_type)
            while True:
                deltas = reader.feed(piece)
                if deltas:
                    with _unread(response):
                        yield deltas
                if reader.failure is not None:
                    raise reader.failure
                if reader.done or not piece:
                    break
                piece = await self._read(response, silence, reader)
            reader.check_ending()
            await _part(response)
        except UpstreamError as error:
            error.upstream_status = response.status
            raise
        finally:
            silence.stop()
            response.close()

    async def _open(self, path: str, body: bytes) -> tuple[aiohttp.ClientResponse, bytes]:
        """The response and the first bytes of its body."""
        limit = self._timeouts.first_byte
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(limit.total_seconds()):
                response = await self._session.post(
                    self._address(path),
                    data=body,
                    headers=self._headers,
                    timeout=self._client_timeout,
                    allow_redirects=False,
                )
                return response, await response.content.readany()
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _timeout("no connection", self._timeouts.connect) from error
            if isinstance(error, TimeoutError):
                raise _timeout("no first byte", limit) from error
            if isinstance(error, (aiohttp.ClientError, OSError)):
                raise failures.broken(error) from error
            raise

    async def _read(
        self, response: aiohttp.ClientResponse, silence: "_Silence", reader: Reader
    ) -> bytes:
        """The next bytes; nothing at the end of the body."""
        try:
            silence.begin()
            piece = await response.content.readany()
            silence.end()
        except (aiohttp.ClientError, OSError) as error:
            if reader.complete:
                # All is said; that the goodbye is missing hurts nobody.
                return b""
            if silence.too_long:
                raise _timeout("silence", self._timeouts.silence) from error
            raise failures.broken(error) from error
        return piece

    async def _refusal(self, response: aiohttp.ClientResponse, piece: bytes) -> UpstreamError:
        body = bytearray(piece)
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(self._timeouts.silence.total_seconds()):
                while piece and len(body) < ERROR_BODY:
                    piece = await response.content.readany()
                    body += piece
        return failures.refusal(response.status, bytes(body), response.headers, secret=self._secret)


class _Silence:
    """Ends a read that waits too long; one timer a stream, where one a read costs 6 µs each."""

    def __init__(self, response: aiohttp.ClientResponse, limit: timedelta) -> None:
        self.too_long = False
        self._response = response
        self._limit = limit.total_seconds()
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer = self._loop.call_later(self._limit, self._look)

    def begin(self) -> None:
        """A read begins to wait."""
        self._since = self._loop.time()

    def end(self) -> None:
        """It has got something."""
        self._since = None

    def stop(self) -> None:
        """No more reads."""
        self._timer.cancel()

    def _look(self) -> None:
        waited = 0.0 if self._since is None else self._loop.time() - self._since
        if waited >= self._limit:
            self.too_long = True
            self._response.close()
        else:
            self._timer = self._loop.call_later(self._limit - waited, self._look)


@contextmanager
def _unread(response: aiohttp.ClientResponse) -> Iterator[None]:
    """What the upstream says meanwhile waits in the system, and comes as one: each read has its
    price, whoever waits for it. Whoever leaves closes the connection."""
    connection = response.connection
    if connection is None or (transport := connection.transport) is None:  # all of it is here
        yield
        return
    transport.pause_reading()
    yield
    if not transport.is_closing():
        transport.resume_reading()


def _timeout(what: str, limit: timedelta) -> UpstreamTimeout:
    return UpstreamTimeout(f"The upstream timed out: {what} for {limit.total_seconds():g} s.")


async def _part(response: aiohttp.ClientResponse) -> None:
    if response.content.at_eof():  # as of most
        return
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(FAREWELL):
            while await response.content.readany():
                pass
