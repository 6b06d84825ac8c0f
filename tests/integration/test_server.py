"""The sockets of a server: a client that vanished without a word is noticed, silent as it is."""

import asyncio
import socket
from pathlib import Path

from pydantic import SecretStr

from api.server import KEEP_ALIVE, Server
from api.settings import ApiSettings
from tests.valkey import free_port


async def test_accepted_connections_are_kept_under_watch(tmp_path: Path) -> None:
    """Each inherits from the listening socket what TCP needs to find out."""
    nowhere = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    server = Server(ApiSettings(home=tmp_path, port=0, redis_url=nowhere))
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.01)
            [listener] = server.servers[0].sockets
            _, writer = await asyncio.open_connection(*listener.getsockname())
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
        [connection] = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")

        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in (*KEEP_ALIVE, ("TCP_USER_TIMEOUT", 60_000)):
            option = getattr(socket, name, None)
            assert option is None or accepted.getsockopt(socket.IPPROTO_TCP, option) == value
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, 20)
    writer.close()
    await writer.wait_closed()
