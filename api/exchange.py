"""A request and its answer, as the app is told of the one and tells the other (ASGI)."""

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
from starlette.types import ASGIApp, Message, Scope

if TYPE_CHECKING:
    from api.connection import Connection

log = structlog.get_logger()

AHEAD: Final = 64 * 1024
"""Bytes of a body that wait to be asked for; then no more are read."""
CLOSE: Final = (b"connection", b"close")
CHUNKED: Final = (b"transfer-encoding", b"chunked")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS: Final = {
    each.value: b"HTTP/1.1 %d %b\r\n" % (each, each.phrase.encode()) for each in HTTPStatus
}
LEFT: Final = "sluice.left"
"""The ASGI extension with a future that is done when the client has left before its answer."""


class Exchange:
    """A request and its answer."""

    def __init__(
        self, connection: "Connection", scope: Scope, *, kept: bool, expects: bool
    ) -> None:
        self.kept = kept
        """The connection may be used for another."""
        self.began = False
        """The answer has."""
        self.whole = False
        """All of the request has come."""
        self._connection = connection
        self._scope = scope
        self._expects = expects
        """The client waits for a word before it sends the body."""
        self._body = bytearray()
        self._told = False
        """The app has all of the body."""
        self._news: asyncio.Event | None = None
        self._left: asyncio.Future[None] = scope["extensions"][LEFT]
        self._head = b""
        """Goes with the first of the body."""
        self._bodyless = scope["method"] == "HEAD"
        self._remains: int | None = None
        """Bytes that the answer still has; None if it has not said how many."""
        self._chunked = False
        self._ended = False

    async def run(self, app: ASGIApp) -> None:
        """Have the app answer; half an answer ends with the connection."""
        try:
            await app(self._scope, self.receive, self.send)
            if not self._over:
                log.warning("answer_cut_short", path=self._scope["path"])
        except asyncio.CancelledError:
            pass  # the process is about to end
        except Exception:
            log.exception("answer_broke")
        finally:
            if not self._ended:
                self._connection.transport.abort()

    def hear(self, body: bytes, *, whole: bool = False) -> None:
        """More of the request has come."""
        self.whole = whole
        if self._ended:
            return
        self._body += body
        if len(self._body) > AHEAD:
            self._connection.pause_reading()
        self._wake()

    def leave(self) -> None:
        """The client has left."""
        if not self._left.done():
            self._left.set_result(None)
        self._wake()

    async def receive(self) -> Message:
        """The next part of the body; after its end, word that nobody is there any more."""
        if self._expects and not (self.began or self.whole or self._left.done()):
            self._connection.transport.write(CONTINUE)
        self._expects = False
        while not (self._body or (self.whole and not self._told) or self._over):
            self._connection.resume_reading()
            self._news = self._news or asyncio.Event()
            self._news.clear()
            await self._news.wait()
        if self._over:
            return {"type": "http.disconnect"}
        self._told, body, self._body = self.whole, bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not self._told}

    async def send(self, message: Message) -> None:
        """The head of the answer, or some of its body; waits while the client is slow to read."""
        connection = self._connection
        while connection.full is not None and not self._left.done():
            await connection.full.wait()
        if self._left.done():
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
        else:
            self._say(message.get("body", b""), more=message.get("more_body", False))

    @property
    def _over(self) -> bool:
        return self._ended or self._left.done()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self.began:
            raise RuntimeError("a second answer")
        self.began = True
        headers = [*self._connection.state.default_headers, *headers]
        sizes = [value for name, value in headers if name == b"content-length"]
        if sizes:
            self._remains = int(sizes[0])
        if status in (204, 304) or self._bodyless:
            self._bodyless, self._remains = True, None
        elif not sizes and self._scope["http_version"] == "1.1":
            self._chunked = True
            headers.append(CHUNKED)
        self.kept &= not self._connection.last
        if not self.kept:
            headers.append(CLOSE)
        self._head = head_of(status, headers)
        if self._remains is None:  # it may be long before there is more to say
            self._write(b"")

    def _say(self, body: bytes, *, more: bool) -> None:
        if self._ended or not self.began:
            raise RuntimeError("a word before or after the answer")
        if self._bodyless:
            body = b""
        elif self._remains is not None:
            self._remains -= len(body)
            if self._remains < 0 or (self._remains and not more):
                raise RuntimeError("the answer is not as long as it says")
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        self._write(body)
        if not more:
            self._ended = True
            self._wake()
            self._connection.answered(self)

    def _write(self, body: bytes) -> None:
        said = self._head + body if self._head else body
        self._head = b""
        if said:
            self._connection.transport.write(said)


def head_of(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What comes before a body. Raises `RuntimeError` for a header that would be more than one."""
    parts = [STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n")
    head, lines = b"".join(parts), (len(parts) + 2) // 4 + 1
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise RuntimeError("a header with a control character")
    return head


def leaving(scope: Scope) -> "asyncio.Future[None]":
    """Done when the client has left before it had its answer."""
    left: asyncio.Future[None] = scope["extensions"][LEFT]
    return left
