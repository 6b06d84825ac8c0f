"""Starts the service's processes by forking one that has imported it: for a tenth of the work.

From there on they are processes like any other, with memory, files and signals of their own. They
begin where `python -m cli` would, with the environment they are given.

`python -m tests.zygote` is the one that is forked. It is told on stdin whom to start, and tells on
stdout who was born, and who ended with which code: a line of JSON each.
"""

import atexit
import faulthandler
import gc
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from queue import Queue
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
IMPORTED: Final = (
    "cli.main",
    "cli.configuration",
    "api.server",
    "uvicorn.loops.uvloop",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "workers.app",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.concurrency.solo",
    "celery.worker.autoscale",
    "kombu.transport.redis",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
)


class Child:
    """One process, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises `subprocess.TimeoutExpired`."""
        if not self._ended.wait(timeout) or self._code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self._code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def end(self, code: int) -> None:
        """It has ended."""
        self._code = code
        self._ended.set()


class Zygote:
    """The process that is forked, and its children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ordering = threading.Lock()
        self._born: Queue[Child] = Queue()
        threading.Thread(target=self._listen, name="zygote", daemon=True).start()
        atexit.register(self._close)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """Start `sluice …`, with its output at the end of a file."""
        order = {"arguments": arguments, "environment": dict(environment), "log": str(log)}
        with self._ordering:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return self._born.get(timeout=60)

    def _listen(self) -> None:
        children: dict[int, Child] = {}
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "code" in told:
                children.pop(told["pid"]).end(told["code"])
            else:
                child = children[told["pid"]] = Child(told["pid"])
                self._born.put(child)

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@cache
def zygote() -> Zygote:
    """This test run's, started when it is needed first."""
    return Zygote()


def main() -> None:
    """Fork whom we are told to, and be that process in the fork."""
    gc.disable()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    if (order := _serve()) is not None:
        _be(order)


def _serve() -> dict[str, Any] | None:
    """None when nobody is to be started any more; in a fork, what it was told to be."""
    ended, tell_ended = os.pipe()
    os.set_blocking(tell_ended, False)
    signal.set_wakeup_fd(tell_ended)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        orders = b""
        while True:
            for key, _ in selector.select():
                read = os.read(key.fd, 1 << 20)
                if key.fd == ended:
                    for pid, code in _reaped():
                        _tell(pid=pid, code=code)
                    continue
                if not read:
                    return None
                *complete, orders = (orders + read).split(b"\n")
                for order in complete:
                    if (pid := os.fork()) == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        # Whoever is started in the background of a shell is deaf to it.
                        signal.signal(signal.SIGINT, signal.default_int_handler)
                        os.close(ended)
                        os.close(tell_ended)
                        return dict(json.loads(order))
                    _tell(pid=pid)


def _reaped() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _tell(**what: int) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _be(order: Mapping[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    silence = os.open(os.devnull, os.O_RDONLY)
    for mine, its in ((silence, 0), (log, 1), (log, 2)):
        os.dup2(mine, its)
    os.close(log)
    os.close(silence)
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable()
    sys.argv = ["sluice", *order["arguments"]]
    from cli.main import app

    app(prog_name="sluice")


if __name__ == "__main__":
    main()
