"""`sluice api` as a server: how it learns that a client is gone, and how it ends in good order."""

import asyncio
import math
import socket
from types import FrameType
from typing import Final

import uvicorn

from api.app import create_app
from api.commit import DOUBT_WITHIN
from api.connection import Connection
from api.settings import ApiSettings
from shared.db import ANSWER_WITHIN
from shared.hangup import on_hangup

KEEP_ALIVE: Final = (
    ("TCP_KEEPIDLE", 30),
    ("TCP_KEEPINTVL", 10),
    ("TCP_KEEPCNT", 3),
)
"""A machine that says nothing for 30 s is asked three times, 10 s apart. A platform may lack some
of these."""
LAST_RESORT: Final = math.ceil(ANSWER_WITHIN + DOUBT_WITHIN) + 2
"""Seconds that answers have to end after the grace, before they are broken off; more than the
database has to say no, and than it takes to give up a commit in doubt."""


class Server(uvicorn.Server):
    """Uvicorn's; what is open when it is asked to stop goes on for the grace, then hears why."""

    def __init__(self, settings: ApiSettings) -> None:
        self._app = create_app(settings)
        self._grace = settings.shutdown_grace.total_seconds()
        self._unread_ms = round(settings.unread_timeout.total_seconds() * 1000)
        self._signals: set[int] = set()
        super().__init__(
            uvicorn.Config(
                self._app.state.surrounded,
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http=Connection,
                timeout_graceful_shutdown=math.ceil(self._grace) + LAST_RESORT,
                log_config=None,
                access_log=False,  # the app logs its requests itself
                proxy_headers=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, for connections that notice when their other end is gone."""
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                keep_alive(listener, reset_after=2 * self._unread_ms)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and wait for what is open, the longest until the last resort."""
        front = self._app.state.front
        draining = asyncio.get_running_loop().call_later(self._grace, front.drain)
        try:
            await super().shutdown(sockets)
        finally:
            draining.cancel()

    def reload(self) -> None:
        """Read the catalogue anew; before the app has started, it has yet to be read."""
        front = getattr(self._app.state, "front", None)
        if front is not None:
            front.reload()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in good order, or at once when the same signal has come before.

        Uvicorn's own would raise the signal again in the end: the exit code would not be 0.
        """
        self.force_exit |= sig in self._signals
        self.should_exit = True
        self._signals.add(sig)


def serve(settings: ApiSettings) -> bool:
    """Serve the API until SIGTERM or SIGINT; whether it ever started."""
    server = Server(settings)
    on_hangup(server.reload)
    server.run()
    return server.started


def keep_alive(listener: socket.socket, *, reset_after: int) -> None:
    """Have TCP look after the connections that this socket will accept; they inherit it.

    `reset_after`: milliseconds for which a client may take no bytes, or acknowledge none.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*KEEP_ALIVE, ("TCP_USER_TIMEOUT", reset_after)):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
