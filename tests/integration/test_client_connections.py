"""What clients do with their connections, byte by byte, and what comes back."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from api import connection
from api.connection import HEAD_LIMIT, WAITING, Connection
from api.exchange import AHEAD, leaving

GET = b"GET /%d?a=%%20b HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
SIZED = [(b"content-length", b"2")]
WITHIN = 10.0


@dataclass
class App:
    """Answers as it is told, and remembers what it was asked."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: list(SIZED))
    says: tuple[bytes, ...] = (b"ok",)
    reads: bool = True
    scopes: list[Scope] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    heard: bytes = b""
    """Of the last of them."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """A request has come."""
    waits: bool = False
    """It says nothing but the head before it is told to go on."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """An answer has ended, or its client has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        self.scopes.append(scope)
        self.asked.set()
        try:
            if self.reads:
                self.bodies.append(await self._whole(receive))
            start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
            await send(start)
            if self.waits:
                await self.go.wait()
            for number, said in enumerate(self.says, 1):
                more = number < len(self.says)
                await send({"type": "http.response.body", "body": said, "more_body": more})
        finally:
            self.over.set()

    async def _whole(self, receive: Receive) -> bytes:
        self.heard, more = b"", True
        while more:
            message = await receive()
            self.heard += message.get("body", b"")
            more = message.get("more_body", False)
        return self.heard


@dataclass
class Client:
    """One connection, and the server at its other end."""

    server: uvicorn.Server
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def says(self, *pieces: bytes) -> None:
        """Send these, each by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def head(self) -> tuple[str, dict[str, str]]:
        """An answer's first line, and its headers."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().removesuffix("\r\n\r\n")
        first, *lines = head.split("\r\n")
        return first, dict(line.split(": ", 1) for line in lines)

    async def answer(self) -> tuple[str, dict[str, str], bytes]:
        """A whole answer that says how long it is."""
        first, headers = await self.head()
        return first, headers, await self.reader.readexactly(int(headers["content-length"]))

    async def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        async with asyncio.timeout(WITHIN):
            return await self.reader.read()

    @property
    def ours(self) -> Connection:
        """The server's side of it."""
        [found] = self.server.server_state.connections
        assert isinstance(found, Connection)
        return found


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[Client]:
    """A client of this app, connected."""
    config = uvicorn.Config(
        app, port=0, http=Connection, loop="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(WITHIN):
            while not server.started:
                await asyncio.sleep(0.01)
            [listener] = server.servers[0].sockets
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                yield Client(server, reader, writer)
            finally:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, WITHIN)


async def test_a_request_is_told_as_asgi_has_it() -> None:
    """With its path decoded, its headers in lower case, and where it came from."""
    async with served(app := App()) as client:
        await client.says(
            b"POST /caf%C3%A9/x?a=%20b HTTP/1.1\r\nHost: x\r\nX-A: B\r\nX-a: c\r\n\r\n"
        )
        await client.answer()
        ours = client.writer.get_extra_info("sockname")

    [scope] = app.scopes
    assert (scope["method"], scope["path"]) == ("POST", "/café/x")
    assert (scope["raw_path"], scope["query_string"]) == (b"/caf%C3%A9/x", b"a=%20b")
    assert scope["headers"] == [(b"host", b"x"), (b"x-a", b"B"), (b"x-a", b"c")]
    assert (scope["http_version"], scope["scheme"], scope["client"]) == ("1.1", "http", ours)


async def test_an_answer_is_its_head_and_its_body() -> None:
    """Dated, and the connection is good for the next."""
    async with served(App(headers=[*SIZED, (b"x-a", b"b")])) as client:
        for number in range(3):
            await client.says(GET % number)
            first, headers, body = await client.answer()
            assert (first, body, headers["x-a"]) == ("HTTP/1.1 200 OK", b"ok", "b")
            assert headers.keys() == {"date", "server", "content-length", "x-a"}


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_request_may_come_in_any_pieces(size: int) -> None:
    """Cut wherever it likes, with a length or in chunks of its own."""
    sized = b"POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\nhello world"
    chunked = (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    )
    async with served(app := App()) as client:
        for asked in (sized, chunked):
            await client.says(*(asked[at : at + size] for at in range(0, len(asked), size)))
            await client.answer()

    assert app.bodies == [b"hello world"] * 2


async def test_the_head_does_not_wait_for_the_first_word() -> None:
    """A stream's client knows that it was heard; each piece goes as a chunk."""
    app = App(headers=[], says=(b"one", b"", b"two" * 10, b""), waits=True)
    async with served(app) as client:
        await client.says(GET % 1)
        _, headers = await client.head()
        assert headers["transfer-encoding"] == "chunked"
        app.go.set()
        said = await client.reader.readuntil(b"0\r\n\r\n")
        assert said == b"3\r\none\r\n1e\r\n" + b"two" * 10 + b"\r\n0\r\n\r\n"
        await client.says(GET % 2)
        assert (await client.head())[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "method, status, headers",
    [(b"HEAD", 200, SIZED), (b"HEAD", 200, []), (b"GET", 204, []), (b"GET", 304, [])],
)
async def test_an_answer_without_a_body_has_none(
    method: bytes, status: int, headers: list[tuple[bytes, bytes]]
) -> None:
    """What the app says all the same is not sent: the next answer follows at once."""
    async with served(App(status=status, headers=headers)) as client:
        for _ in range(2):
            await client.says(method + b" / HTTP/1.1\r\n\r\n")
            first, told = await client.head()
            assert first.startswith(f"HTTP/1.1 {status} ")
            assert "transfer-encoding" not in told


@pytest.mark.parametrize("headers", [SIZED, []])
async def test_a_client_of_http_1_0_reads_to_the_end(headers: list[tuple[bytes, bytes]]) -> None:
    """It knows no chunks, and is told that there will be no more."""
    async with served(App(headers=headers)) as client:
        await client.says(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        _, told = await client.head()
        assert told["connection"] == "close"
        assert "transfer-encoding" not in told
        assert await client.rest() == b"ok"


async def test_a_client_that_wants_no_more_gets_no_more() -> None:
    """`Connection: close`, and whatever it says after that."""
    async with served(app := App()) as client:
        await client.says(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" + GET % 2)
        _, headers, _ = await client.answer()
        assert headers["connection"] == "close"
        assert await client.rest() == b""

    assert len(app.scopes) == 1


async def test_requests_that_come_together_are_answered_one_by_one() -> None:
    """In their order."""
    paths = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await App()(scope, receive, send)

    async with served(app) as client:
        await client.says(b"".join(GET % number for number in range(WAITING + 1)))
        for _ in range(WAITING + 1):
            await client.answer()

    assert paths == [f"/{number}" for number in range(WAITING + 1)]


async def test_no_more_requests_wait_than_a_client_has_use_for() -> None:
    """The one under way is answered all the same."""
    app = App(waits=True)
    async with served(app) as client:
        await client.says(b"".join(GET % number for number in range(2 * WAITING)))
        await app.asked.wait()
        while not client.ours.last:
            await asyncio.sleep(0.01)
        app.go.set()
        assert (await client.rest()).count(b"HTTP/1.1 200 OK") == 1

    assert len(app.scopes) == 1


async def test_a_request_behind_a_large_one_may_begin_with_its_end() -> None:
    """What came before it does not count as its head."""
    body = b"x" * 5 * HEAD_LIMIT
    async with served(app := App()) as client:
        await client.says(POST % len(body) + body + b"GET / HT", b"TP/1.1\r\n\r\n")
        assert (await client.answer())[2] == b"ok"
        assert (await client.answer())[2] == b"ok"

    assert app.bodies == [body, b""]


async def test_a_client_that_waits_for_a_word_gets_it_when_its_body_is_wanted() -> None:
    """And only then: a refused body need not be sent at all."""
    asking = b"POST / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    async with served(app := App()) as client:
        await client.says(asking)
        assert await client.head() == ("HTTP/1.1 100 Continue", {})
        await client.says(b"he")
        while app.heard != b"he":
            await asyncio.sleep(0.01)
        await client.says(b"llo")
        assert (await client.answer())[0] == "HTTP/1.1 200 OK"
        await client.says(asking + b"hello")  # it would rather not wait
        assert (await client.answer())[0] == "HTTP/1.1 200 OK"
    assert app.bodies == [b"hello", b"hello"]

    async with served(App(status=413, reads=False)) as client:
        await client.says(asking)
        assert (await client.head())[0].startswith("HTTP/1.1 413 ")


async def test_a_body_that_nobody_reads_is_not_taken_in() -> None:
    """It waits with the client; once it is answered it is thrown away."""
    app = App(reads=False, waits=True)
    body = b"x" * (64 * AHEAD)
    async with served(app) as client:
        sending = asyncio.create_task(client.says(POST % len(body), body, GET % 2))
        await app.asked.wait()
        while client.ours.transport.is_reading():
            await asyncio.sleep(0.01)
        assert not sending.done()
        app.go.set()
        await client.answer()
        await client.answer()
        await sending


async def test_an_answer_that_nobody_reads_waits() -> None:
    """The app says no more than the system and we hold, and goes on when there is room."""
    piece = b"x" * 100_000
    app = App(headers=[], says=(piece,) * 200)
    async with served(app) as client:
        transport = cast(asyncio.Transport, client.writer.transport)
        transport.pause_reading()  # asyncio would read ahead
        await client.says(GET % 1)
        while not (client.server.server_state.connections and client.ours.full):
            await asyncio.sleep(0.01)
        assert not app.over.is_set()
        transport.resume_reading()
        await client.head()
        said = b""
        while not said.endswith(b"0\r\n\r\n"):
            said += await client.reader.read(1_000_000)
        assert said.count(b"x") == 200 * len(piece)
        assert app.over.is_set()


@pytest.mark.parametrize("body", [b"", b"half"])
async def test_a_client_that_leaves_is_missed(body: bytes) -> None:
    """Whether all of its request had come or not; what is said to it then goes nowhere."""
    told: list[str] = []
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await leaving(scope)
        message = await receive()
        while message["type"] != "http.disconnect":
            message = await receive()
        told.append(message["type"])
        await App(reads=False)(scope, receive, send)
        over.set()

    async with served(app) as client:
        await client.says(POST % (2 * len(body)) + body)
        client.writer.close()
        await over.wait()

    assert told == ["http.disconnect"]


async def test_who_has_the_answer_has_not_left() -> None:
    """The connection's end is no news to it."""
    async with served(app := App()) as client:
        await client.says(GET % 1)
        await client.answer()
        client.writer.close()
        await app.over.wait()

    assert not leaving(app.scopes[0]).done()


@pytest.mark.parametrize(
    "asked, status",
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 5 * HEAD_LIMIT, 431),
        (b"GET /" + b"x" * 5 * HEAD_LIMIT, 431),
    ],
)
async def test_what_is_no_request_is_refused(asked: bytes, status: int) -> None:
    """In OpenAI's words, and the connection with it."""
    async with served(app := App()) as client:
        client.writer.write(asked)
        first, headers, body = await client.answer()
        assert first.startswith(f"HTTP/1.1 {status} ")
        assert headers["connection"] == "close"
        assert json.loads(body)["error"]["type"] == "invalid_request_error"

    assert app.scopes == []


async def test_an_endless_head_is_not_kept() -> None:
    """However slowly it grows."""
    async with served(App()) as client:
        await client.says(b"GET / HTTP/1.1\r\n")
        while not client.server.server_state.connections:
            await asyncio.sleep(0.01)
        ours, lines = client.ours, 0
        while not ours.last:
            await client.says(b"A: " + b"x" * 995 + b"\r\n")
            lines += 1
        assert HEAD_LIMIT / 1000 < lines < 2 * HEAD_LIMIT / 1000
        assert (await client.head())[0].startswith("HTTP/1.1 431 ")


async def test_nonsense_in_a_body_is_refused() -> None:
    """The app hears that nobody is there, and the client why."""
    async with served(app := App()) as client:
        await client.says(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n")
        assert (await client.head())[0].startswith("HTTP/1.1 400 ")
        await app.over.wait()


async def test_nonsense_after_a_request_spoils_no_answer() -> None:
    """It is sent to its end, and then the connection is closed."""
    app = App(waits=True)
    async with served(app) as client:
        await client.says(GET % 1, b"nonsense\r\n\r\n")
        while not client.ours.last:
            await asyncio.sleep(0.01)
        app.go.set()
        assert (await client.answer())[2] == b"ok"
        assert await client.rest() == b""


async def test_another_protocol_is_not_spoken() -> None:
    """Who offers to go on in one is answered in ours, for the last time."""
    upgrade = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with served(App()) as client:
        await client.says(upgrade)
        assert (await client.answer())[0] == "HTTP/1.1 200 OK"
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "app",
    [
        App(headers=[*SIZED, (b"x-a", b"b\r\nset-cookie: c")]),
        App(headers=[*SIZED, (b"x-a\n", b"b")]),
        App(headers=[*SIZED, (b"x-a", b"b\0")]),
        App(says=(b"longer",)),
        App(says=(b"",)),
    ],
)
async def test_half_an_answer_is_no_answer(app: App) -> None:
    """A header with another in it, a length that is not kept: the connection breaks."""
    async with served(app) as client:
        await client.says(GET % 1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.answer()


async def test_an_app_that_fails_breaks_its_own_connection() -> None:
    """And nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("a bug")

    async with served(app) as client:
        await client.says(GET % 1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.answer()
        assert client.server.started


async def test_what_one_request_notes_the_next_does_not_see() -> None:
    """A log line says whose it is."""
    noted: ContextVar[str] = ContextVar("noted")
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(noted.get(None))
        noted.set(scope["path"])
        await App()(scope, receive, send)

    async with served(app) as client:
        await client.says(GET % 1 + GET % 2)
        await client.answer()
        await client.answer()
        await client.says(GET % 3)
        await client.answer()

    assert seen == [None] * 3


@pytest.mark.parametrize("begun", [b"", b"GET / HT"])
async def test_a_connection_that_asks_nothing_is_closed(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that never did, one that did before, and one that does not come to an end with it."""
    monkeypatch.setattr(connection, "IDLE", 0.2)
    async with served(App()) as client:
        await client.says(begun)
        assert await client.rest() == b""
    async with served(App()) as client:
        await client.says(GET % 1)
        await client.answer()
        await client.says(begun)
        assert await client.rest() == b""


async def test_a_connection_that_waits_for_its_answer_is_not_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that takes."""
    monkeypatch.setattr(connection, "IDLE", 0.05)
    app = App(waits=True)
    async with served(app) as client:
        await client.says(GET % 1)
        await app.asked.wait()
        looked = client.ours._timer
        while client.ours._timer is looked or client.ours._timer is None:
            await asyncio.sleep(0.01)
        app.go.set()
        assert (await client.answer())[2] == b"ok"


async def test_a_server_that_stops_takes_in_what_it_has_begun() -> None:
    """The rest of a body, and its answer, which says that it is the last; idle ones go at once."""
    async with served(app := App()) as client:
        await client.says(POST % 5 + b"he")
        await app.asked.wait()
        _, port = client.writer.get_extra_info("peername")
        idle, writer = await asyncio.open_connection("127.0.0.1", port)
        while len(client.server.server_state.connections) < 2:
            await asyncio.sleep(0.01)
        client.server.should_exit = True
        assert await idle.read() == b""
        writer.close()
        await writer.wait_closed()
        await client.says(b"llo")
        _, headers, body = await client.answer()
        assert (headers["connection"], body) == ("close", b"ok")
        assert await client.rest() == b""

    assert app.bodies == [b"hello"]
