"""A server: clients that vanish without a word are noticed, and bugs are told as such."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from api.server import KEEP_ALIVE, Server
from api.settings import ApiSettings
from tests.valkey import free_port


@asynccontextmanager
async def started(server: Server) -> AsyncIterator[tuple[str, int]]:
    """Where it listens; stopped in the end."""
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.01)
        [listener] = server.servers[0].sockets
        yield listener.getsockname()
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, 20)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """One without a Redis, which it does not wait for."""
    nowhere = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    return Server(ApiSettings(home=tmp_path, port=0, redis_url=nowhere))


async def test_a_bug_of_ours_is_told_as_one(server: Server) -> None:
    """Wherever it is: masked, in OpenAI's words, with the id that the log has."""

    async def bug() -> None:
        raise ValueError("secret")

    server._app.add_api_route("/bug", bug)
    async with started(server) as (host, port), httpx.AsyncClient() as client:
        answer = await client.get(f"http://{host}:{port}/bug")

    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["type"] == "server_error"
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret" not in answer.text


async def test_accepted_connections_are_kept_under_watch(server: Server) -> None:
    """Each inherits from the listening socket what TCP needs to find out."""
    async with started(server) as address:
        _, writer = await asyncio.open_connection(*address)
        async with asyncio.timeout(20):
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
        [connection] = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")

        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in (*KEEP_ALIVE, ("TCP_USER_TIMEOUT", 60_000)):
            option = getattr(socket, name, None)
            assert option is None or accepted.getsockopt(socket.IPPROTO_TCP, option) == value
        writer.close()
        await writer.wait_closed()
