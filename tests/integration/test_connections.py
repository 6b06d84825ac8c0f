"""Connections to Redis fail in ways that everybody expects."""

import asyncio
from typing import Any

import pytest
import redis
import uvloop

from shared import connections
from tests.valkey import Valkey


def test_a_server_that_hung_up_is_a_connection_error(redis_server: Valkey) -> None:
    """Also when the loop noticed between two commands, for which uvloop has an error of its own."""

    async def write_to_a_closed_connection() -> None:
        async with connections.open_redis(redis_server.url, connections=1) as client:
            pool: Any = client.connection_pool
            connection = await pool.get_connection()
            connection._writer.transport.abort()  # as it is when the other end has gone
            try:
                await connection.send_packed_command(b"PING\r\n", check_health=False)
            finally:
                await pool.release(connection)

    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(redis.ConnectionError),
    ):
        runner.run(write_to_a_closed_connection())
