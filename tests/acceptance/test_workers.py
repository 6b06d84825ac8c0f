"""Real workers that die, stand still, stall, come and go, or have the wrong time."""

import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url
from sqlmodel import Session

from shared import ids, queue
from shared.tables import Job, Worker
from tests.blocking import BLOCK
from tests.factories import Sessions
from tests.fakes.upstream import Say, Stall, Status, WaitFor
from tests.stack import Process, Stack, eventually
from tests.valkey import Valkey
from workers.heartbeat import STALLED_EXIT

SKEWED = "tests.faults.skewed"


class Client:
    """Submits jobs in the background and looks at them."""

    def __init__(self, stack: Stack) -> None:
        self.http: httpx.Client = stack.http()

    def submit(self, model: str = "test") -> str:
        """The id of a new job."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        answer = self.http.post("/v1/chat/completions", json={**body, "background": True})
        assert answer.status_code == 202, answer.text
        return str(answer.headers["x-job-id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """It, now."""
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").json()
        return found

    def ended(self, job_id: str, within: float = 60.0) -> str:
        """Wait for its end; how it ended."""
        last = ("completed", "failed", "cancelled", "expired")
        done = eventually(lambda: (s := self.job(job_id)["status"]) in last and s, within)
        return str(done)

    def text(self, job_id: str) -> str:
        """What it said."""
        found = self.http.get(f"/v1/chat/completions/{job_id}").json()
        content: str = found["choices"][0]["message"]["content"]
        return content

    def outcomes(self, job_id: str) -> list[str | None]:
        """How its attempts ended."""
        tries = self.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]
        return [each["outcome"] for each in tries]


@pytest.fixture
def sessions(stack: Stack) -> Iterator[Sessions]:
    """A look at the rows."""
    opened = Sessions(stack.database_url)
    yield opened
    opened.close()


def holder(session: Session, job_id: str) -> int | None:
    """The process id of the worker that has this job in hand."""
    job = session.get_one(Job, ids.bare(job_id))
    return session.get_one(Worker, job.worker_id).pid if job.status == "in_progress" else None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_that_kills_its_workers_is_stopped(stack: Stack, sessions: Sessions) -> None:
    """It fails when that cannot have been another, and its neighbours all complete."""
    stack.upstream.script("test", Say(pieces=[" word"] * 30, every=0.1))
    stack.upstream.script("test-1", Stall())
    workers = {worker.pid: worker for worker in (stack.worker(), stack.worker())}
    stack.ready(stack.api(), *workers.values())
    client = Client(stack)
    neighbours = [client.submit() for _ in range(6)]
    poison = client.submit("test-1")
    kills = 0

    def it_kills() -> bool:
        nonlocal kills
        if len(stack.upstream.calls_of("test-1")) > kills:
            with sessions() as session:
                pid = holder(session, poison)
            if pid in workers:
                workers.pop(pid).kill()
                kills += 1
                replacement = stack.worker()
                workers[replacement.pid] = replacement
        return bool(client.job(poison)["status"] == "failed")

    eventually(it_kills, 100)

    error = client.job(poison)["error"]
    assert error["code"] == "worker_lost"
    assert error["message"] == f"{kills} workers were lost with this job in hand."
    assert kills >= 3
    assert client.outcomes(poison) == ["lost"] * kills
    assert [client.ended(job_id) for job_id in neighbours] == ["completed"] * 6


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_ends_in_good_order_though_nobody_answers_it(
    stack: Stack, redis_server: Valkey
) -> None:
    """Asked to stop while the database is locked and Redis gone; its lease runs out by itself."""
    worker, api = stack.worker(), stack.api()
    stack.ready(api, worker)
    redis_server.kill()
    database = make_url(stack.database_url).database or ""
    with closing(sqlite3.connect(database, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        worker.send(signal.SIGTERM)

        assert worker.wait(60) == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_ends_though_redis_went_just_as_it_told_that_it_is_there(
    stack: Stack, redis_server: Valkey
) -> None:
    """Celery would go on telling until Redis is back, and hear of nothing else."""
    worker = stack.start("worker", module="tests.halting")
    eventually(lambda: Path(f"/proc/{worker.pid}/stat").read_text().split()[2] == "T", 30)
    redis_server.kill()
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGCONT)

    assert worker.wait() == 0


def frozen(process: Process, stack: Stack) -> bool:
    """Stop it between two transactions: in one, it would keep all others from a SQLite file."""
    process.send(signal.SIGSTOP)
    url = make_url(stack.database_url)
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database or "", timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send(signal.SIGCONT)
                return False
    return True


def test_a_worker_that_stood_still_finds_its_job_given_away(stack: Stack) -> None:
    """Frozen for longer than its lease, it changes neither the result nor the stream."""
    go = threading.Event()
    stack.upstream.script_calls("test", [Say("One two"), WaitFor(go), Say(" three")], [Say("Four")])
    zombie, api = stack.worker(), stack.api()
    stack.ready(api, zombie)
    client = Client(stack)
    job_id = client.submit()
    eventually(lambda: client.job(job_id)["progress"]["deltas"] > 1)
    eventually(lambda: frozen(zombie, stack))
    successor = stack.worker()
    assert client.ended(job_id) == "completed"
    before = client.job(job_id)

    go.set()
    zombie.send(signal.SIGCONT)
    eventually(lambda: zombie.log.read_text().count('"lease_taken"') == 2, 20)

    assert client.job(job_id) == before
    assert client.text(job_id) == "Four"
    replay = client.http.get(f"/v1/chat/completions/{job_id}", params={"stream": "true"}).text
    assert "Four" in replay
    assert "three" not in replay
    lost, completed = client.outcomes(job_id)
    assert lost in ("lost", "late")
    assert completed == "completed"
    successor.stop()
    assert client.ended(client.submit()) == "completed"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_whose_event_loop_stands_still_ends_itself(stack: Stack) -> None:
    """Nobody else could stop its upstream calls; its jobs go to the next."""
    stack.upstream.script_calls("test", [Say("One two"), Stall()], [Say("Four")])
    blocking, api = stack.start("worker", module="tests.blocking"), stack.api()
    stack.ready(api, blocking)
    client = Client(stack)
    job_id = client.submit()
    eventually(lambda: client.job(job_id)["progress"]["deltas"] > 1)

    queue.connect(stack.redis_url).send_task(BLOCK, queue=queue.MAINTENANCE)
    assert blocking.wait() == STALLED_EXIT
    stack.worker()

    assert client.ended(job_id) == "completed"
    assert client.outcomes(job_id) == ["lost", "completed"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_wall_clocks_may_be_wrong(stack: Stack, sessions: Sessions) -> None:
    """One worker is an hour ahead, another an hour behind, and so is the api: nothing changes."""
    stack.upstream.script_calls("test", [Status(503)], [Say("Hi")])
    stack.upstream.script_calls("test-1", [Say("One two"), Stall()], [Say("Four")])
    workers = {
        worker.pid: worker
        for worker in (
            stack.start("worker", "3600", module=SKEWED),
            stack.start("worker", "-3600", module=SKEWED),
        )
    }
    api = stack.start("api", "-3600", module=SKEWED)
    stack.ready(api, *workers.values())
    client = Client(stack)

    again, kept = client.submit(), client.submit("test-1")
    assert client.ended(again, 20) == "completed"
    assert client.outcomes(again) == ["retry", "completed"]
    eventually(lambda: client.job(kept)["progress"]["deltas"] > 1)
    with sessions() as session:
        pid = holder(session, kept)
    assert pid is not None
    workers[pid].kill()
    assert client.ended(kept) == "completed"
    assert client.outcomes(kept) == ["lost", "completed"]


def test_a_rolling_restart_costs_nothing(stack: Stack) -> None:
    """Every worker is replaced under load: each job completes, and was asked of its model once."""
    stack.upstream.script("test", Say(pieces=[" word"] * 10, every=0.05))
    workers = [stack.worker(SLUICE_DRAIN="10") for _ in range(2)]
    stack.ready(stack.api(), *workers)
    client, job_ids = Client(stack), list[str]()

    def replace(worker: Process) -> None:
        replacement = stack.worker(SLUICE_DRAIN="10")
        eventually(lambda: '"lease_taken"' in replacement.log.read_text(), 30)
        worker.send(signal.SIGTERM)

        def gone() -> bool:
            if len(job_ids) < 60:
                job_ids.append(client.submit())
            return not worker.running

        eventually(gone, 30)
        assert worker.wait() == 0

    for worker in workers:
        job_ids += [client.submit() for _ in range(10)]
        replace(worker)

    assert {client.ended(job_id) for job_id in job_ids} == {"completed"}
    outcomes = [outcome for job_id in job_ids for outcome in client.outcomes(job_id)]
    assert set(outcomes) <= {"completed", "handed_back"}
    assert len(stack.upstream.calls) == len(job_ids)
