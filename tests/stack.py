"""A whole Sluice of real processes on loopback, for acceptance tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
from sqlmodel import Session

from shared import accounts, audit, db, keys, ledger
from shared.prices import NANO
from tests.fakes.upstream import ScriptedUpstream
from tests.valkey import free_port
from tests.zygote import ROOT, Child, zygote

CATALOG = """
[upstreams.fake]
dialect = "openai"
base_url = "{base_url}"
"""
MODEL = """
[models."{name}"]
upstream = "fake"
context_window = 8192
max_output_tokens = 4096
free = true
"""
FREE = "free = true"
T = TypeVar("T")
PLAIN = False
"""For httpx's `verify`: reading the certificates of the world takes 25 ms, and all is loopback."""
POLLED_EVERY = 0.01, 0.1
"""Seconds from one look to the next: at first, and when it takes long."""
STARTS_WITHIN = 30.0
SHORT = {"SLUICE_DRAIN": "3", "SLUICE_HINT_TTL": "3", "SLUICE_SHUTDOWN_GRACE": "1"}
WEBHOOKS = {"SLUICE_WEBHOOK_ALLOW": "127.0.0.1", "SLUICE_WEBHOOK_SCHEDULE": "0.2,0.2,0.2"}
"""Receivers of tests are on loopback, and impatient."""
"""Settings with which a test ends soon."""
QUICK_LEASES = {
    "SLUICE_LEASE_TTL": "6",
    "SLUICE_LEASE_BEAT": "0.5",
    "SLUICE_LEASE_MARGIN": "1.5",
}
"""Settings under which a lost worker is noticed within seconds; a busy machine may lose one."""


def eventually(look: Callable[[], T | None], within: float = 10.0) -> T:
    """What `look` finds, as soon as it is something; fails when it takes too long."""
    deadline = time.monotonic() + within
    pause, longest = POLLED_EVERY
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(pause)
        pause = min(pause * 1.3, longest)
    raise AssertionError(f"not within {within} s: {look}")


class Process:
    """One `sluice` command, its output in a file; `module` may stand in for the CLI's own.

    It runs the code of the folder that it starts in. `forked`: if that is ours, it need not be
    imported again.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        log: Path,
        module: str = "cli",
        tree: Path = ROOT,
        *,
        forked: bool = True,
    ) -> None:
        self.log = log
        log.touch()
        self._popen: subprocess.Popen[bytes] | Child
        if forked and module == "cli" and tree == ROOT:
            self._popen = zygote().start(arguments, {**os.environ, **environment}, log)
            return
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=tree,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """kill -9."""
        self._popen.kill()
        self._popen.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._popen.send_signal(number)

    def wait(self, within: float = 30.0) -> int:
        """Its exit code."""
        return self._popen.wait(within)

    def stop(self) -> None:
        """SIGTERM, then, if need be, SIGKILL."""
        if self.running:
            self.send(signal.SIGTERM)
            try:
                self.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()


class Stack:
    """Database, Valkey and upstream are there; api and worker processes are started at will.

    Whatever becomes of them, every promise of the database holds when they have stopped.
    """

    def __init__(
        self,
        home: Path,
        database_url: str,
        redis_url: str,
        upstream: ScriptedUpstream,
        key: str | None = None,
    ) -> None:
        self.home = home
        self.database_url = database_url
        self.redis_url = redis_url
        self.upstream = upstream
        self.port = free_port()
        self.tree = ROOT
        """Where the code is of processes that start from now on."""
        self.forked = True
        """Whether those may share memory with each other that they only read."""
        self.audited = True
        """Whether the database has to keep every promise in the end."""
        self._processes: list[Process] = []
        self._clients: list[Any] = []
        self.environment = {
            **SHORT,
            **WEBHOOKS,
            "SLUICE_HOME": str(home),
            "SLUICE_DATABASE_URL": database_url,
            "SLUICE_REDIS_URL": redis_url,
            "SLUICE_CATALOG": str(home / "models.toml"),
            "SLUICE_PORT": str(self.port),
        }
        self.offer("test", *(f"test-{number}" for number in range(20)))
        self.key = key or self.mint("ours")

    def offer(self, *names: str, price: str = FREE) -> None:
        """Put these models into the catalogue of processes that start from now on."""
        self.catalogue("".join(MODEL.format(name=name).replace(FREE, price) for name in names))

    def catalogue(self, models: str) -> None:
        """The same, with models (and more upstreams) as the catalogue has them."""
        text = CATALOG.format(base_url=self.upstream.base_url) + models
        (self.home / "models.toml").write_text(text)

    def mint(self, account: str) -> str:
        """A key of the account of that name."""
        engine = db.connect(self.database_url)
        with Session(engine) as session, session.begin():
            _, text = keys.create(session, account=account)
        engine.dispose()
        return text

    def fund(self, account: str, credits: int) -> None:
        """Give the account of that name so many credits."""
        engine = db.connect(self.database_url)
        with Session(engine) as session, session.begin():
            ours = accounts.ensure(session, account)
            ledger.grant(session, ours.id, credits * NANO, note="test")
        engine.dispose()

    @property
    def url(self) -> str:
        """The first API's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, name: str, *arguments: str, module: str = "cli", **environment: str) -> Process:
        """Start `sluice name …`."""
        log = self.home / f"{name}-{len(self._processes)}.log"
        process = Process(
            [name, *arguments],
            {**self.environment, **environment},
            log,
            module,
            self.tree,
            forked=self.forked,
        )
        self._processes.append(process)
        return process

    def api(self, port: int | None = None, **environment: str) -> Process:
        """Start an api process and wait until it answers."""
        port = port or self.port
        process = self.start("api", SLUICE_PORT=str(port), **environment)
        self._answers(process, f"http://127.0.0.1:{port}/health/live")
        return process

    def worker(self, **environment: str) -> Process:
        """Start a worker process."""
        return self.start("worker", **environment)

    def up(self) -> "Stack":
        """Start one api and one worker, and wait until they are ready."""
        worker = self.worker()
        api = self.api()
        self.ready(api, worker)
        return self

    def ready(self, *processes: Process) -> None:
        """Wait until `/health/ready` is true."""
        self._answers(processes[0], f"{self.url}/health/ready")

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official SDK, which never retries unless told."""
        plain = openai.DefaultHttpxClient(verify=PLAIN)
        client = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key or self.key,
            **{"max_retries": 0, "timeout": 60, "http_client": plain, **options},
        )
        self._clients.append(client)
        return client

    def http(self, key: str | None = None) -> httpx.Client:
        """A plain client with the key set."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=PLAIN)
        self._clients.append(client)
        return client

    def _answers(self, process: Process, url: str) -> None:
        def look() -> bool | None:
            if not process.running:
                raise AssertionError(
                    f"{process.log.name} ended:\n{process.log.read_text()[-4000:]}"
                )
            try:
                return httpx.get(url, timeout=5, verify=PLAIN).status_code == 200
            except httpx.HTTPError:
                return None

        eventually(look, STARTS_WITHIN)

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for client in self._clients:
            client.close()
        for process in reversed(self._processes):
            process.stop()
        if kind is not None or "PYTEST_CURRENT_TEST" in os.environ:  # it shows them on a failure
            for process in self._processes:
                print(f"--- {process.log.name}\n{process.log.read_text()[-6000:]}")
        if self.audited:
            self._audit()

    def _audit(self) -> None:
        """What `sluice doctor --audit` does: every promise of the database holds."""
        engine = db.connect(self.database_url)
        report = audit.examine(engine)
        engine.dispose()
        assert not report.broken, report.flaws
