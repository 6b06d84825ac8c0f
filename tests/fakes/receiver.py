"""A receiver of webhooks on loopback: keeps what it is sent, and answers what the test says."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@dataclass(frozen=True)
class Reply:
    """How one sending is answered."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    hold: threading.Event | None = None
    """It is answered when this is set."""


@dataclass(frozen=True)
class Received:
    """One sending."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        """What it tells."""
        return orjson.loads(self.body)

    @property
    def id(self) -> str:
        """The event's."""
        return self.headers["webhook-id"]


class Receiver:
    """A context: an HTTP server in threads. Each path has its replies; the last one stays."""

    def __init__(self) -> None:
        self._sent: list[Received] = []
        self._replies: dict[str, list[Reply]] = {}
        self._changed = threading.Lock()
        self.never = threading.Event()
        """Nothing sets it but the end of the test."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """The address of one of its paths."""
        return f"http://{host}:{self.port}{path}"

    def script(self, path: str, *replies: Reply) -> None:
        """Answer at that path with these, one after another."""
        self._replies[path] = list(replies)

    def at(self, path: str) -> list[Received]:
        """What arrived at that path, in order."""
        with self._changed:
            return [one for one in self._sent if one.path == path]

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", "0")))
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._changed:
            self._sent.append(Received(request.path, headers, body))
            replies = self._replies.get(request.path, [Reply()])
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply.hold is not None:
            reply.hold.wait(60)
        try:
            request.send_response(reply.status)
            for name, value in reply.headers:
                request.send_header(name, value)
            request.send_header("content-length", str(len(reply.body)))
            request.end_headers()
            request.wfile.write(reply.body)
        except OSError:
            pass  # the sender did not wait for it

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.never.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
