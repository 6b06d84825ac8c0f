"""Connections to Redis or Valkey: they answer, or fail, within seconds."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.backoff import NoBackoff

SOCKET_TIMEOUT: Final = 5.0
CLOSE_WITHIN: Final = 1.0
"""Seconds for the connections' last words; one whose other side hangs would take its time."""
OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": SOCKET_TIMEOUT,
    "socket_connect_timeout": 3.0,
    "socket_keepalive": True,
    "health_check_interval": 15,
    "retry": Retry(NoBackoff(), 0),
    "protocol": 2,
}


class _Plain(AbstractConnection):
    """Fails in the ways that redis-py knows, also where uvloop has a word of its own."""

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)
        except RuntimeError as error:  # "the handler is closed": the server hung up as we wrote
            raise ConnectionResetError(str(error)) from error


class _Tcp(_Plain, Connection):
    pass


class _Tls(_Plain, SSLConnection):
    pass


class _Master(_Plain, SentinelManagedConnection):
    pass


class _Masters(SentinelConnectionPool, BlockingConnectionPool):
    """Waits for a free connection, as the other pool does, and closes the way to the Sentinels."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


PLAIN: Final[dict[type[AbstractConnection], type[AbstractConnection]]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
}


def open_redis(url: str, *, connections: int = 64) -> Redis:
    """A client that answers or fails within seconds, and never sends a command twice.

    `sentinel://host:port;sentinel://host:port/0?master_name=NAME` asks Sentinels for the master.
    """
    if url.startswith("sentinel"):
        return _master(url, connections)
    pool = BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=SOCKET_TIMEOUT, **OPTIONS
    )
    pool.connection_class = PLAIN.get(pool.connection_class, pool.connection_class)
    return Redis.from_pool(pool)


def _master(url: str, connections: int) -> Redis:
    """The master that the Sentinels of a URL in kombu's spelling name."""
    address, _, query = url.partition("?")
    nodes = [urlsplit(node) for node in address.split(";")]
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
        [(node.hostname or "localhost", node.port or 26379) for node in nodes],
        sentinel_kwargs=OPTIONS,
    )
    master: Redis = sentinel.master_for(
        dict(parse_qsl(query)).get("master_name", "mymaster"),
        db=int(nodes[-1].path.strip("/") or 0),
        username=nodes[-1].username,
        password=nodes[-1].password,
        connection_class=_Master,
        connection_pool_class=_Masters,
        max_connections=connections,
        timeout=SOCKET_TIMEOUT,
        **OPTIONS,
    )
    return master


async def close(redis: Redis) -> None:
    """Close a client's connections; those that take too long are left to the operating system."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_WITHIN):
            await redis.aclose()
