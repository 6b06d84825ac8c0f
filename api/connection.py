"""A client's connection: HTTP/1.1, one request at a time, each served by the app (ADR 31).

Uvicorn listens and makes one of these for each that comes. A request holds its place until its
answer is sent; those that a client sends meanwhile wait, and are served in their order.
"""

import asyncio
from collections import deque
from contextvars import copy_context
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from api import errors
from api.exchange import CLOSE, LEFT, Exchange, head_of
from shared.errors import InvalidRequest

IDLE: Final = 75.0
"""Seconds for which a connection is kept that asks nothing, or does not come to the end of its
question's head: longer than a client would use it again, who else may ask as we close it."""
HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a request before its body, and one read more."""
WAITING: Final = 16
"""Requests that wait behind one. What asks for more at once is no client of ours."""


class Connection(asyncio.Protocol):
    """One of them. Made by uvicorn, which asks it to `shutdown`."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.transport: asyncio.Transport
        self.state = server_state
        self.last = False
        """No more requests are taken: it ends with the answer to this one."""
        self.full: asyncio.Event | None = None
        """While the client is slow to read: what to wait for before more is written."""
        self._app = cast(ASGIApp, config.loaded_app)
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._context = copy_context()
        """What a request's log lines say of it is not said of the next."""
        self._parser = httptools.HttpRequestParser(self)
        self._addresses: tuple[Any, Any] = (None, None)
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects = False
        self._heading: int | None = None
        """Bytes of a head that is not whole yet, after the read in which it began."""
        self._arriving: Exchange | None = None
        """Whose request is being read."""
        self._current: Exchange | None = None
        """Whose answer is being sent."""
        self._waiting: deque[Exchange] = deque()
        self._paused = False
        self._idle_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    # What comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._addresses = get_local_addr(self.transport), get_remote_addr(self.transport)
        self._timer = self._loop.call_later(IDLE, self._look)
        self.state.connections.add(self)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and nobody waits for an answer."""
        self.state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
        if self._current is not None:
            self._current.leave()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        if self.last and (self._current is None or self._current.whole):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.last = True  # we go on as we are, and what comes now may be anything
        except httptools.HttpParserError:
            self._refuse("This is not HTTP/1.1.", 400)
        if self._arriving is not None:
            return
        if self._heading is None:  # some of this read may belong to what came before
            self._heading = 0
            return
        self._heading += len(data)
        if self._heading > HEAD_LIMIT:
            self._refuse(f"The headers are over {HEAD_LIMIT:,} bytes.", 431)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._target, self._headers, self._expects = b"", [], False
        self._arriving, self._heading = None, None

    def on_url(self, part: bytes) -> None:
        """Some of what it asks for."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers."""
        name = name.lower()
        self._headers.append((name, value))
        self._expects |= name == b"expect"

    def on_headers_complete(self) -> None:
        """All but its body is known: it can be served."""
        if self._current is not None and len(self._waiting) >= WAITING:
            raise ValueError("too many at once")
        version, kept = self._parser.get_http_version(), self._parser.should_keep_alive()
        self._arriving = exchange = Exchange(
            self, self._scope(version), kept=kept and version != "1.0", expects=self._expects
        )
        if self._current is None:
            self._serve(exchange)
        else:
            self._waiting.append(exchange)

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        if self._arriving is not None:
            self._arriving.hear(body)

    def on_message_complete(self) -> None:
        """All of it has come."""
        if self._arriving is not None:
            self._arriving.hear(b"", whole=True)

    def _scope(self, version: str) -> Scope:
        url = httptools.parse_url(self._target)
        path = url.path.decode("ascii")
        server, client = self._addresses
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "server": server,
            "client": client,
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self._headers,
            "state": self._app_state.copy(),
            "extensions": {LEFT: self._loop.create_future()},
        }

    # What goes

    def _serve(self, exchange: Exchange) -> None:
        self._current = exchange
        task = self._loop.create_task(exchange.run(self._app), context=self._context.copy())
        task.add_done_callback(self.state.tasks.discard)
        self.state.tasks.add(task)

    def answered(self, exchange: Exchange) -> None:
        """That was the last byte of an answer: on to the next request, if there is to be one."""
        self._current = None
        if self.last or not exchange.kept:
            self.close()
        elif self._waiting:
            self._serve(self._waiting.popleft())
        else:
            self._idle_since = self._loop.time()
            self.resume_reading()

    def close(self) -> None:
        """Close it once all is sent."""
        self.last = True
        self.transport.close()

    def shutdown(self) -> None:
        """Take no more requests; the answer under way is the last."""
        self.last = True
        if self._current is None:
            self.close()

    def _refuse(self, why: str, status: int) -> None:
        """What comes is not understood: so it is the last, after the answer to what was."""
        self.last, current = True, self._current
        if self.transport.is_closing() or (current is not None and current.whole):
            return
        if current is None or not current.began:
            answer = errors.refusal(InvalidRequest(why, status=status))
            said = head_of(status, [*self.state.default_headers, *answer.raw_headers, CLOSE])
            self.transport.write(said + bytes(answer.body))
        if current is not None:
            current.leave()
        self.close()

    def _look(self) -> None:
        """Close it if nothing was asked for too long."""
        now = self._loop.time()
        until = IDLE + (self._idle_since if self._current is None else now)
        if now >= until:
            self.close()
        else:
            self._timer = self._loop.call_at(until, self._look)

    # How fast

    def pause_reading(self) -> None:
        """Let what comes wait in the system."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client is slow to read."""
        self.full = self.full or asyncio.Event()

    def resume_writing(self) -> None:
        """It has read what waited, or is gone."""
        if self.full is not None:
            self.full.set()
            self.full = None
