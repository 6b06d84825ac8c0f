"""A whole Sluice on loopback with default settings, in front of the cheap upstream."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from bench.watch import DATABASE
from shared import revisions
from tests.fakes.upstream import ScriptedUpstream
from tests.postgres import Postgres
from tests.stack import SHORT, Process, Stack, eventually
from tests.valkey import free_port, valkey

PRICE: Final = "input_price = 1.0\noutput_price = 2.0"
CREDITS: Final = 1_000_000


@dataclass(slots=True, kw_only=True)
class Target:
    """Who is measured: what answers chat completions, and its processes."""

    url: str
    key: str
    upstream_url: str
    pids: dict[str, int]
    headers: Mapping[str, str] = field(default_factory=dict)
    """That every request needs beside the key."""


@dataclass(slots=True, kw_only=True)
class Service(Target):
    """Ours: an api, workers, Valkey and, if it has one, a PostgreSQL server."""

    stack: Stack

    @property
    def workers(self) -> int:
        """How many there are."""
        return sum(name.startswith("worker") for name in self.pids)

    def add_worker(self) -> Process:
        """Start one more worker, and wait until it is known."""
        worker, number = self.stack.worker(), self.workers + 1
        self.pids[f"worker {number}"] = worker.pid
        known = f"sluice_workers {number}.0"
        eventually(lambda: known in httpx.get(f"{self.url}/metrics").text.splitlines(), 60)
        self.stack.ready(worker)
        return worker


@contextmanager
def running(
    *models: str, postgres: Postgres | None = None, workers: int = 1, **environment: str
) -> Iterator[Service]:
    """One api and so many workers, ready; on SQLite unless there is a PostgreSQL server."""
    with ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        (home / "valkey").mkdir()
        if postgres is None:
            url = f"sqlite:///{home / 'sluice.db'}"
            revisions.migrate(url)
        else:
            url = opened.enter_context(postgres.fresh())
        redis = opened.enter_context(valkey(home / "valkey"))
        upstream = ScriptedUpstream(free_port())  # never started: only its address counts
        stack = opened.enter_context(Stack(home, url, redis.url, upstream))
        stack.forked = False
        stack.offer(*models, price=PRICE)
        stack.fund("ours", CREDITS)
        for name in SHORT:
            del stack.environment[name]
        stack.environment |= {"SLUICE_LOG_LEVEL": "WARNING", **environment}
        stack.start("--port", str(upstream.port), module="bench.upstream")
        service = Service(
            url=stack.url,
            key=stack.key,
            upstream_url=f"http://127.0.0.1:{upstream.port}",
            pids={"api": stack.api().pid, "valkey": redis.pid},
            stack=stack,
        )
        if postgres is not None:
            service.pids[DATABASE] = postgres.pid
        for _ in range(workers):
            service.add_worker()
        yield service
