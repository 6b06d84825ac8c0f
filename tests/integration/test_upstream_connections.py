"""Connections to upstreams, against servers that answer byte by byte as they are told."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import uvloop

from shared.catalog import UpstreamEntry
from shared.errors import UpstreamDisconnected, UpstreamError, UpstreamRejected, UpstreamTimeout
from tests.hearing import KEY, PATIENT, Heard, hear, listen, opened
from workers.upstreams.connections import Connections
from workers.upstreams.openai import OpenAIUpstream
from workers.upstreams.protocol import Timeouts

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
SAID = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "Yes"}, "finish_reason": "stop"}]}\n\n'
    b"data: [DONE]\n\n"
)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
WHOLE = OK + b"content-length: %d\r\n\r\n%b" % (len(SAID), SAID)
ENDED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    b'{"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]}'
)
"""Nothing but the end of the connection tells that it is complete."""


class Server:
    """Sends one answer to each request; of each connection, it keeps what came over it."""

    def __init__(self, *answers: bytes, close: bool = False, early: bool = False) -> None:
        self.connections: list[bytearray] = []
        self.left = asyncio.Event()
        """A connection has ended."""
        self._answers = list(answers)
        self._close = close
        self._early = early

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        received = bytearray()
        self.connections.append(received)
        try:
            while self._answers:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
                received += head
                if not self._early:
                    received += await reader.readexactly(size)
                writer.write(self._answers.pop(0))
                if self._close:
                    return
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.left.set()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[UpstreamEntry]:
    """The catalogue's entry for it."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield UpstreamEntry(dialect="openai", base_url=f"http://127.0.0.1:{port}/v1")


def asked(
    make: Callable[[], Server],
    times: int = 1,
    timeouts: Timeouts = PATIENT,
    request: dict[str, Any] = ASKED,
    key: str = KEY,
) -> tuple[list[Heard], Server]:
    """What came of so many calls, one after another."""

    async def ask() -> tuple[list[Heard], Server]:
        server = make()
        async with (
            serving(server) as entry,
            opened(OpenAIUpstream, entry, timeouts, key) as upstream,
        ):
            heard = [await listen(upstream, request, model="m") for _ in range(times)]
        return heard, server

    return uvloop.run(ask())


def test_a_request_says_what_a_server_must_know() -> None:
    """In one piece, with its address and its length."""
    _, server = asked(lambda: Server(WHOLE))

    head, _, body = bytes(server.connections[0]).partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    told = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert told["host"].startswith("127.0.0.1:")
    assert told["content-length"] == str(len(body))
    assert told["authorization"] == f"Bearer {KEY}"
    assert told["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
        b"HTTP/1.1 103 Early Hints\r\ncontent-type: application/json\r\n\r\n" + WHOLE,
        OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(SAID), SAID),
        OK
        + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b"
        % (len(gzip.compress(SAID)), gzip.compress(SAID)),
    ],
    ids=["continue", "hints", "chunked", "gzip"],
)
def test_all_that_http_allows_is_understood(answer: bytes) -> None:
    """And the connection is used again."""
    heard, server = asked(lambda: Server(answer, answer), times=2)

    assert [(one.error, one.text) for one in heard] == [(None, "Yes")] * 2
    assert len(server.connections) == 1


@pytest.mark.parametrize(
    "answer, close",
    [
        (ENDED, True),
        (WHOLE.replace(OK, OK + b"connection: close\r\n"), False),
        (WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (WHOLE + WHOLE, False),
    ],
    ids=["until it ends", "says close", "old", "answers twice"],
)
def test_a_connection_that_may_not_last_is_not_used_again(answer: bytes, close: bool) -> None:
    """What it has said counts all the same."""
    heard, server = asked(lambda: Server(answer, answer, close=close), times=2)

    assert [(one.error, one.text) for one in heard] == [(None, "Yes")] * 2
    assert len(server.connections) == 2


@pytest.mark.parametrize(
    "answer, close",
    [
        (b"", True),
        (OK + b"content-length: 1000\r\n\r\n" + SAID[:20], True),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n", False),
        (OK + b"x: " + b"y" * 100_000, False),
        (OK + b"content-encoding: br\r\ncontent-length: 4\r\n\r\nabcd", False),
        (OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(bytes(20_000_000)), False),
    ],
    ids=["nothing", "cut", "other", "upgrade", "endless head", "unknown packing", "bomb"],
)
def test_what_is_no_answer_breaks_off(answer: bytes, close: bool) -> None:
    """At once, and in so many words."""
    [heard], _ = asked(lambda: Server(answer, close=close))

    assert type(heard.error) is UpstreamDisconnected
    assert heard.error.message == "The connection to the upstream broke off."


def test_an_answer_may_come_before_the_request_is_read() -> None:
    """A server that refuses a large body need not take it; its connection is used no more."""
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}"
    request = {"messages": [{"role": "user", "content": "a" * 20_000_000}]}

    heard, server = asked(lambda: Server(refusal, refusal, early=True), 2, request=request)

    assert [type(one.error) for one in heard] == [UpstreamRejected] * 2
    assert [one.error.upstream_status for one in heard if one.error] == [413, 413]
    assert len(server.connections) == 2


def test_a_status_without_a_body_is_heard_and_then_the_wait_is_over() -> None:
    """The first byte is the body's: its head alone is no answer."""
    soon = Timeouts(*(timedelta(seconds=each) for each in (5, 0.1, 5)))

    [heard], _ = asked(lambda: Server(OK + b"content-length: 5\r\n\r\n"), timeouts=soon)

    assert type(heard.error) is UpstreamTimeout
    assert "no first byte for 0.1 s" in heard.error.message
    assert heard.error.upstream_status is None


def test_connections_that_nobody_uses_are_closed() -> None:
    """After a while, and at the end."""

    async def ask() -> None:
        server = Server(WHOLE, WHOLE, WHOLE)
        async with serving(server) as entry:
            with Connections(idle=0.05) as connections:
                upstream = OpenAIUpstream(connections, entry, api_key=None, timeouts=PATIENT)
                for _ in range(2):
                    assert (await listen(upstream, ASKED, model="m")).text == "Yes"
                    await asyncio.wait_for(server.left.wait(), 5)
                    server.left.clear()
                assert (await listen(upstream, ASKED, model="m")).text == "Yes"
            await asyncio.wait_for(server.left.wait(), 5)
        assert len(server.connections) == 3

    uvloop.run(ask())


def test_a_server_may_close_what_nobody_uses() -> None:
    """The next call has a connection of its own."""

    async def ask() -> None:
        server = Server(WHOLE, WHOLE, close=True)
        async with serving(server) as entry:
            with Connections() as connections:
                upstream = OpenAIUpstream(connections, entry, api_key=None, timeouts=PATIENT)
                assert (await listen(upstream, ASKED, model="m")).text == "Yes"
                await asyncio.wait_for(server.left.wait(), 5)
                assert (await listen(upstream, ASKED, model="m")).text == "Yes"
                assert connections.made == 2

    uvloop.run(ask())


def test_a_name_that_nobody_knows_is_not_found() -> None:
    """The address is not told."""
    heard = hear(
        OpenAIUpstream,
        UpstreamEntry(dialect="openai", base_url="http://nobody.invalid/v1"),
        ASKED,
        model="m",
    )

    assert isinstance(heard.error, UpstreamError)
    assert heard.error.message == "The upstream's host name was not found."


def test_a_key_with_a_line_break_is_never_sent() -> None:
    """It would be headers of somebody else's making."""
    with pytest.raises(ValueError, match="line break"):
        asked(lambda: Server(WHOLE), key="sk-a\r\nx-more: b")


def test_an_address_may_have_a_name_and_a_password() -> None:
    """A server behind a proxy that asks for them."""

    async def ask() -> bytes:
        server = Server(WHOLE)
        async with serving(server) as entry:
            url = entry.base_url.replace("//", "//me:p%40ss@")
            named = UpstreamEntry(dialect="openai", base_url=url)
            async with opened(OpenAIUpstream, named, api_key=None) as upstream:
                assert (await listen(upstream, ASKED, model="m")).text == "Yes"
        return bytes(server.connections[0])

    sent = uvloop.run(ask())

    assert b"\r\nAuthorization: Basic bWU6cEBzcw==\r\n" in sent
    assert b"me:" not in sent
