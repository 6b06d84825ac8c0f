"""An upgrade while the service runs: migrate, then new beside old, then new alone."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from shared import revisions
from shared.tables import Job
from tests.factories import Sessions
from tests.fakes.upstream import Say, ScriptedUpstream, WaitFor
from tests.frames import frames, text_of
from tests.postgres import Postgres
from tests.stack import Stack, eventually
from tests.valkey import Valkey, free_port
from tests.zygote import ROOT

BEFORE = "c5740a10cb6684ca8a57fe88960913915812231d"
"""The last commit whose tables were at the revision below."""
REVISION = "0002"
PATH = "/v1/chat/completions"
SHARE = 9
"""Requests that are answered between two steps."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as they were."""
    command = ["git", "archive", BEFORE, "api", "cli", "shared", "workers"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"no history here: {archive.stderr.decode()}")
    tree = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(tree, filter="data")
    return tree


@pytest.fixture
def empty_database(postgres_server: Postgres) -> Iterator[str]:
    """A database without tables; with SQLite all processes share a machine, and stop together."""
    with postgres_server.fresh("template1") as url:
        yield url


def sluice(tree: Path, database_url: str, *words: str) -> str:
    """What a command of the code in a folder prints."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=tree,
        env={**os.environ, "SLUICE_DATABASE_URL": database_url},
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()


class Load:
    """Callers that ask one thing after the other, each at the api that serves then."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.answered: list[str] = []
        self.wrong: list[str] = []
        self._over = threading.Event()

    @contextmanager
    def applied(self) -> Iterator["Load"]:
        """Callers of each form, for as long as this lasts."""
        with ThreadPoolExecutor() as pool:
            forms = (self._held, self._streamed, self._background)
            callers = [pool.submit(self._ask, form) for form in forms]
            try:
                yield self
            finally:
                self._over.set()
        for caller in callers:
            caller.result()

    def goes_on(self) -> None:
        """Wait until some more have been answered, all of them as they should be."""
        until = len(self.answered) + SHARE
        eventually(lambda: self.wrong or len(self.answered) >= until, 30)
        assert self.wrong == []

    def _ask(self, form: Any) -> None:
        number, http = 0, self.stack.http()
        while not self._over.is_set():
            number += 1
            asked = f"{form.__name__} {number} and six words more"
            request = {"model": "echo-d20ms", "messages": [{"role": "user", "content": asked}]}
            heard = form(http, request)
            (self.answered if heard == asked else self.wrong).append(f"{asked}: {heard}")

    def _at(self, path: str) -> str:
        """A path at the api that serves now."""
        return self.stack.url + path

    def _held(self, http: httpx.Client, request: dict[str, Any]) -> str:
        response = http.post(self._at(PATH), json=request)
        return _text(response) if response.status_code == 200 else response.text

    def _streamed(self, http: httpx.Client, request: dict[str, Any]) -> str:
        response = http.post(self._at(PATH), json={**request, "stream": True})
        whole = response.text.endswith("data: [DONE]\n\n") and "event: error" not in response.text
        return text_of(frames(iter([response.content]))) if whole else response.text

    def _background(self, http: httpx.Client, request: dict[str, Any]) -> str:
        response = http.post(self._at(PATH), json={**request, "background": True})
        if response.status_code != 202:
            return response.text
        found = http.get(self._at(response.headers["location"]), headers={"prefer": "wait=50"})
        return _text(found) if found.json()["status"] == "completed" else found.text


def _text(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def workers(stack: Stack) -> str:
    """How many there are, as the api's metrics say."""
    lines = httpx.get(f"{stack.url}/metrics", timeout=10).text.splitlines()
    return next(line for line in lines if line.startswith("sluice_workers "))


def test_an_upgrade_under_load_is_not_noticed(
    old: Path, tmp_path: Path, empty_database: str, redis_server: Valkey, upstream: ScriptedUpstream
) -> None:
    """Every request is answered, every job ends once, and what was handed back loses no attempt."""
    go = threading.Event()
    upstream.script("test", Say("begun"), WaitFor(go), Say(" and ended"))
    sluice(old, empty_database, "migrate")
    assert revisions.compare(empty_database)[0] == REVISION
    key = sluice(old, empty_database, "keys", "create", "--account", "ours")

    with Stack(tmp_path, empty_database, redis_server.url, upstream, key) as stack:
        stack.environment["SLUICE_SHUTDOWN_GRACE"] = "20"
        stack.offer("test", "echo-d20ms")
        stack.tree = old
        old_worker, old_api = stack.worker(), stack.api()
        stack.ready(old_api, old_worker)
        request = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}
        long = stack.http().post(PATH, json={**request, "background": True}).headers["x-job-id"]
        with Load(stack).applied() as load:
            load.goes_on()
            stack.tree = ROOT
            assert stack.start("migrate").wait(60) == 0
            load.goes_on()
            new_worker = stack.worker()
            eventually(lambda: workers(stack) == "sluice_workers 2.0", 30)
            load.goes_on()
            old_worker.send(signal.SIGTERM)
            assert old_worker.wait() == 0
            go.set()
            load.goes_on()
            new_port = free_port()
            new_api = stack.api(new_port)
            load.goes_on()
            stack.port = new_port
            load.goes_on()
            old_api.send(signal.SIGTERM)
            assert old_api.wait() == 0
            load.goes_on()
        stack.ready(new_api, new_worker)
        text = _text(stack.http().get(f"{PATH}/{long}", headers={"prefer": "wait=30"}))
        tries = stack.http().get(f"/v1/jobs/{long}/attempts").json()["data"]
        sessions = Sessions(empty_database)
        with sessions() as session:
            jobs = session.exec(select(Job)).all()
        sessions.close()

    assert load.wrong == []
    assert text == "begun and ended"
    assert [tried["outcome"] for tried in tries] == ["handed_back", "completed"]
    ended = {(job.status, job.attempt - job.forgiven, job.losses) for job in jobs}
    assert ended == {("completed", 1, 0)}
    assert len(jobs) == len(load.answered) + 1
    assert len(upstream.calls) == len(jobs) + 1
