"""The link that other tests cut, hang and mend."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
import redis
import sqlalchemy
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.exc import OperationalError

from shared import db
from tests.postgres import Postgres
from tests.proxy import Link, through
from tests.valkey import Valkey


@pytest.fixture
def link(redis_server: Valkey) -> Iterator[Link]:
    """A link to a Valkey."""
    with Link(redis_server.port) as opened:
        yield opened


@pytest.fixture
def client(redis_server: Valkey, link: Link) -> Iterator[redis.Redis]:
    """A client that uses it, and never repeats anything by itself."""
    url = through(redis_server.url, link)
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as opened:
        yield opened


def dialled(link: Link) -> socket.socket:
    """A connection over the link."""
    return socket.create_connection(("127.0.0.1", link.port), 5)


def answer(connection: socket.socket, command: bytes) -> bytes:
    """The first bytes of what Valkey says to it."""
    connection.sendall(command + b"\r\n")
    return connection.recv(100)


def let_go(connection: socket.socket) -> bool:
    """Whether it ends within its time: by a reset, if the kernel had not yet handed it over."""
    try:
        return not connection.recv(1)
    except ConnectionResetError:
        return True


def test_bytes_go_both_ways(client: redis.Redis) -> None:
    """Unchanged, however many."""
    client.set("a", b"\0\xff" * 500_000)

    assert client.get("a") == b"\0\xff" * 500_000


def test_a_cut_link_refuses_until_it_is_mended(link: Link, client: redis.Redis) -> None:
    """At the same port."""
    assert client.ping()

    for _ in range(2):
        link.cut()
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.ping()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", link.port))
        link.mend()
        assert client.ping()


def test_who_comes_just_as_the_link_is_cut_is_let_go(link: Link) -> None:
    """asyncio's own server would forget the connection, and leave it open until it is collected."""
    stalled = threading.Event()
    link._loop.call_soon_threadsafe(stalled.wait)
    with dialled(link) as late:
        cutting = asyncio.run_coroutine_threadsafe(link._cut(), link._loop)
        stalled.set()
        cutting.result(5)

        assert let_go(late)


def test_a_hanging_link_swallows_everything(link: Link, client: redis.Redis) -> None:
    """Of connections old and new; they are closed when it is mended."""
    with dialled(link) as old:
        assert answer(old, b"PING")
        link.hang()
        with dialled(link) as fresh:
            for connection in (old, fresh):
                connection.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    answer(connection, b"SET a 1")

            link.mend()

            assert let_go(old)
            assert let_go(fresh)
    assert client.get("a") is None


def test_dropped_connections_are_replaced(link: Link) -> None:
    """Only those that there were."""
    with dialled(link) as old:
        assert answer(old, b"PING")

        link.drop()

        assert let_go(old)
    with dialled(link) as fresh:
        assert answer(fresh, b"PING")


@pytest.mark.parametrize("sslmode", ["prefer", "disable"])
def test_a_lost_commit_has_taken_place(postgres_server: Postgres, sslmode: str) -> None:
    """The client is told nothing, so many times as were asked for; other answers pass."""
    with postgres_server.fresh() as url, Link.to(url) as link:
        engine = db.connect(f"{through(url, link)}?sslmode={sslmode}")
        insert = sqlalchemy.text("INSERT INTO accounts VALUES (:a, :a, 0, 0)")
        link.lose_commits(2)
        for name in "ab":
            with pytest.raises(OperationalError), engine.begin() as connection:
                connection.execute(insert, {"a": name})
        with engine.begin() as connection:
            connection.execute(insert, {"a": "c"})
            found = connection.execute(sqlalchemy.text("SELECT name FROM accounts ORDER BY name"))
            assert found.scalars().all() == ["a", "b", "c"]
        engine.dispose()

        assert link.lost == 2
