"""The database is cut off, hangs, or loses its answers: callers are told, and nothing is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import Session, select

from shared import clock, db
from shared.tables import Job
from tests.fakes.upstream import Say, Stall, WaitFor
from tests.frames import Frame, frames, text_of
from tests.proxy import Link, through
from tests.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

PATH = "/v1/chat/completions"
REQUEST: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}
LONG_LEASES = {"SLUICE_LEASE_TTL": "60", "SLUICE_LEASE_BEAT": "0.5", "SLUICE_LEASE_MARGIN": "8"}


@pytest.fixture
def link(database_url: str) -> Iterator[Link]:
    """The way of all processes to the database."""
    with Link.to(database_url) as opened:
        yield opened


@pytest.fixture
def stack(link: Link, stack: Stack) -> Stack:
    """Processes whose leases outlast what happens to that way."""
    stack.environment |= LONG_LEASES
    stack.environment["SLUICE_DATABASE_URL"] = through(stack.database_url, link)
    return stack


def submit(http: httpx.Client) -> str:
    """The id of a new background job."""
    response = http.post(PATH, json={**REQUEST, "background": True})
    assert response.status_code == 202, response.read()
    job_id: str = response.headers["x-job-id"]
    return job_id


def completed(http: httpx.Client, job_id: str) -> dict[str, Any] | None:
    """A job, once it has completed."""
    response = http.get(f"/v1/jobs/{job_id}")
    job: dict[str, Any] = response.json()
    return job if response.status_code == 200 and job["status"] == "completed" else None


def follow(http: httpx.Client, seen: list[Frame]) -> str:
    """Read a whole stream into `seen`; its job's id."""
    with http.stream("POST", PATH, json={**REQUEST, "stream": True}) as response:
        for frame in frames(response.iter_raw()):
            seen.append(frame)
        return response.headers["x-job-id"]


def waits_until(database_url: str) -> int:
    """The moment at which the only job is given up; fails when it has been."""
    engine = db.connect(database_url)
    with Session(engine) as session:
        job = session.exec(select(Job)).one()
    engine.dispose()
    assert job.cancel_requested_at is None
    assert job.attended_until is not None
    return job.attended_until


def lapse(database_url: str) -> int:
    """The only job's time without readers is over, as far as anybody noted; the moment it is."""
    now = clock.now()
    engine = db.connect(database_url)
    with Session(engine) as session:
        session.execute(update(Job).values(attended_until=now))
        session.commit()
    engine.dispose()
    return now


@pytest.mark.parametrize("how", [Link.cut, Link.hang])
def test_without_the_database_streams_go_on_and_nothing_is_lost(
    stack: Stack, link: Link, how: Callable[[Link], None]
) -> None:
    """New requests are told to come again; what an upstream has said is kept until it is back."""
    go_on = threading.Event()
    stack.upstream.script("test", Say("before"), WaitFor(go_on), Say(" meanwhile"))
    stack.up()
    http, patient = stack.http(), stack.http()
    seen: list[Frame] = []

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(follow, patient, seen)
        held = pool.submit(patient.post, PATH, json=REQUEST)
        eventually(lambda: text_of(seen) == "before" and len(stack.upstream.calls) == 2)
        how(link)
        go_on.set()
        refused = [
            *pool.map(lambda _: http.post(PATH, json=REQUEST), range(5)),
            http.get("/v1/jobs"),
        ]
        eventually(lambda: text_of(seen) == "before meanwhile")
        assert not reading.done()
        measured = http.get("/metrics")
        link.mend()
        job_id = reading.result(30)
        answered = held.result(30)

    for response in refused:
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "service_unavailable"
    assert measured.status_code == 200
    assert {"sluice_readers 2.0", "sluice_workers NaN"} <= set(measured.text.splitlines())
    assert text_of(seen) == "before meanwhile"
    assert seen[-1].data == "[DONE]"
    assert answered.json()["choices"][0]["message"]["content"] == "before meanwhile"
    job = eventually(lambda: completed(http, job_id))
    assert job["attempt"] == 1
    assert len(stack.upstream.calls) == 2
    again = submit(http)
    assert eventually(lambda: completed(http, again), 30)
    assert len(http.get("/v1/jobs").json()["data"]) == 3


def test_an_api_that_is_cut_off_alone_keeps_its_readers_jobs(
    stack: Stack, link: Link, database_url: str
) -> None:
    """It cannot note that they are there, longer than a job waits; the leader asks who listens."""
    go_on = threading.Event()
    stack.upstream.script("test", Say("before"), WaitFor(go_on), Say(" meanwhile"))
    stack.environment["SLUICE_DISCONNECT_GRACE"] = "PT1S"
    worker = stack.worker(SLUICE_DATABASE_URL=database_url)
    stack.ready(stack.api(), worker)
    seen: list[Frame] = []

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(follow, stack.http(), seen)
        eventually(lambda: text_of(seen) == "before")
        link.cut()
        lapsed = lapse(database_url)
        # A last renewal by the api may be on its way, but those are for three seconds.
        eventually(lambda: waits_until(database_url) > lapsed + 5_000)
        go_on.set()
        eventually(lambda: text_of(seen) == "before meanwhile")
        link.mend()
        reading.result(30)

    assert seen[-1].data == "[DONE]"


def test_who_was_accepted_is_not_told_to_ask_again(stack: Stack, link: Link) -> None:
    """A held request whose time is up while nobody can look at its job: its caller has the id."""
    stack.upstream.script("test", Stall())
    http = stack.up().http()

    with ThreadPoolExecutor() as pool:
        held = pool.submit(http.post, PATH, json=REQUEST, headers={"prefer": "wait=3"})
        eventually(lambda: stack.upstream.calls)
        link.cut()
        answer = held.result(30)
        link.mend()

    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
    job_id = answer.json()["error"]["job_id"]
    assert answer.headers["x-job-id"] == job_id
    cancelled = eventually(lambda: stack.http().post(f"/v1/jobs/{job_id}/cancel").is_success, 30)
    assert cancelled


def test_lost_answers_to_commits_do_nothing_twice(stack: Stack, link: Link) -> None:
    """Of submissions, claims and settles: each took place, and is found to have."""
    go_on = threading.Event()
    stack.upstream.script("test", WaitFor(go_on), Say("said"))
    stack.up()
    http = stack.http()

    with ThreadPoolExecutor(20) as pool:
        link.lose_commits(8)
        job_ids = list(pool.map(lambda _: submit(http), range(20)))
        eventually(lambda: len(stack.upstream.calls) == 20, 30)
        link.lose_commits(4)
        go_on.set()
        jobs = [eventually(partial(completed, http, job_id), 30) for job_id in job_ids]

    eventually(lambda: link.lost == 12)
    assert len({job["id"] for job in jobs}) == 20
    assert [job["attempt"] for job in jobs] == [1] * 20
    assert len(stack.upstream.calls) == 20
    assert len(http.get("/v1/jobs?limit=100").json()["data"]) == 20


def test_a_worker_that_waits_for_its_database_stops_when_told(stack: Stack, link: Link) -> None:
    """It has not begun, so there is nothing to say and nothing wrong."""
    link.cut()
    worker = stack.worker()
    eventually(lambda: "database_away" in worker.log.read_text(), 30)

    worker.send(signal.SIGTERM)

    assert worker.wait() == 0
