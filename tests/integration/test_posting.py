"""One POST to a receiver who is down, slow, elsewhere or talkative: an answer, never a surprise."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import aiohttp
import pytest

from shared import signatures
from shared.addresses import Allowed
from shared.deliveries import Parcel
from tests.fakes.receiver import Receiver, Reply
from tests.valkey import free_port
from workers import posting
from workers.posting import Answer, PublicResolver, open_session

LOOPBACK = Allowed.parse("127.0.0.1,hooks.test")
SECRET = signatures.new_secret()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Who is told."""
    with Receiver() as server:
        yield server


class Names(PublicResolver):
    """A resolver whose system knows these answers, one after another."""

    def __init__(self, allowed: Allowed, *answers: list[str]) -> None:
        super().__init__(allowed, threads=2)
        self.answers = list(answers)

    def look_up(self, host: str, port: int, family: int) -> list[Any]:
        """The next answer."""
        if not self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.answers.pop(0)
        ]


def parcel(url: str, *signers: str) -> Parcel:
    """A delivery to that address."""
    return Parcel("dlv_1", 1, "acc_1", "evt_1", url, b'{"object":"event"}', signers)


async def post(url: str, *answers: list[str], allowed: Allowed = LOOPBACK) -> Answer:
    """What comes of one sending."""
    async with open_session(Names(allowed, *answers), limit=4) as session:
        return await posting.post(session, parcel(url, SECRET), allowed)


async def test_the_checked_address_is_connected_to(receiver: Receiver) -> None:
    """The name is looked up once for each sending, and stays in the Host header."""
    resolver = Names(LOOPBACK, ["127.0.0.1"], ["127.0.0.1"], ["192.0.2.1"])
    async with open_session(resolver, limit=4) as session:
        for left in (2, 1):
            url = receiver.url("/named", host="hooks.test")
            answer = await posting.post(session, parcel(url, SECRET), LOOPBACK)
            assert answer == Answer(200)
            assert len(resolver.answers) == left

    for sent in receiver.at("/named"):
        assert sent.headers["host"] == f"hooks.test:{receiver.port}"
        assert sent.headers["content-type"] == "application/json"
        assert sent.headers["webhook-signature"].startswith("v1,")


@pytest.mark.parametrize(
    "url, answers",
    [
        ("https://rebinds.example/", [["10.0.0.1"]]),
        ("https://both.example/", [["8.8.8.8", "127.0.0.1"]]),
        ("https://169.254.169.254/", []),
        ("https://2852039166/", []),
        ("http://example.com/", []),
        ("https://example.com:6379/", []),
    ],
)
async def test_what_is_not_public_is_not_connected_to(url: str, answers: list[list[str]]) -> None:
    """The reason is in the log, without the address; asking again would not help."""
    answer = await post(url, *answers, allowed=Allowed())

    assert (answer.status, answer.refused) == (None, True)
    assert (answer.error or "").startswith("Not sent: ")
    assert not {"10.0.0.1", "127.0.0.1"} & set((answer.error or "").split())


async def test_a_receiver_that_cannot_be_reached_says_why() -> None:
    """Down, or without an address."""
    down = await post(f"http://127.0.0.1:{free_port()}/")
    unknown = await post("https://nowhere.example/")

    assert (down.error, down.refused) == ("It takes no connections.", False)
    assert (unknown.error, unknown.refused) == ("Its name does not resolve.", False)


async def test_a_slow_receiver_is_given_up(receiver: Receiver) -> None:
    """After a time for the whole of it."""
    receiver.script("/slow", Reply(hold=receiver.never))
    soon = aiohttp.ClientTimeout(total=0.3)
    async with open_session(Names(LOOPBACK), limit=4, within=soon) as session:
        answer = await posting.post(session, parcel(receiver.url("/slow")), LOOPBACK)

    assert answer == Answer(error="No answer in time.")


async def test_a_redirect_is_a_failure(receiver: Receiver) -> None:
    """Where it leads nobody has checked."""
    receiver.script("/moved", Reply(307, (("location", receiver.url("/there")),)))
    answer = await post(receiver.url("/moved"))

    assert (answer.status, answer.error) == (307, "It redirects, which is not followed.")
    assert receiver.at("/there") == []


async def test_a_receiver_may_ask_for_time(receiver: Receiver) -> None:
    """`Retry-After` is heard."""
    receiver.script("/busy", Reply(429, (("retry-after", "7"),)))

    answer = await post(receiver.url("/busy"))
    assert (answer.status, answer.retry_after) == (429, timedelta(seconds=7))


async def test_a_long_answer_is_not_read_to_its_end() -> None:
    """Nor is one that was packed small unpacked."""
    taken = 0
    gone = threading.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
                taken += 65_536
        except OSError:
            gone.set()
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    assert await post(f"http://127.0.0.1:{port}/") == Answer(200)
    async with asyncio.timeout(10):
        while not gone.is_set():
            await asyncio.sleep(0.01)
    assert taken < 100_000_000
    server.close()


async def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look up the name by itself."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")

    assert await post(receiver.url("/direct")) == Answer(200)
