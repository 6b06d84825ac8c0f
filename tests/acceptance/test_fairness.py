"""Everybody in turn: a bulk holds up nobody, no limit is passed, and a place means something."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlmodel import Session, col, select

from shared import clock, ids
from shared.lifecycle import JobStatus
from shared.tables import Account, Job
from tests.bulk import (
    ENDPOINT,
    Object,
    ended,
    jsonl,
    line,
    lines,
    shown,
    submitted,
    uploaded,
)
from tests.conftest import migrated, parts
from tests.factories import Sessions
from tests.fakes.upstream import Call, Say, ScriptedUpstream
from tests.stack import FREE, MODEL, Stack, eventually

BULK = int(os.environ.get("SLUICE_TEST_BULK", "2000"))
"""Lines of a batch that nobody should have to wait for; try 50,000."""
SLOTS = 6
"""Of a worker; four of them for batches."""
SOON = 2_000
"""Milliseconds within which a held request starts, whatever else runs."""
NARROW = 3
"""Jobs of the model `narrow` that run at once."""
QUICK, SLOW = Say(pieces=["Yes"], every=0.02), Say(pieces=["Yes"], every=0.1)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with one worker that has few slots."""
    with parts(tmp_path_factory.mktemp("one")) as opened:
        opened.environment["SLUICE_WORKER_CONCURRENCY"] = str(SLOTS)
        yield opened.up()


@pytest.fixture(scope="module", params=["postgresql"])
def two(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A service with two workers, and a model of which only so many jobs run at once."""
    home = tmp_path_factory.mktemp("two")
    with migrated(request, home) as url, parts(home, url) as opened:
        names = "test", *(f"test-{number}" for number in range(4))
        models = [MODEL.format(name=name) for name in names]
        narrow = MODEL.format(name="narrow").replace(FREE, f"{FREE}\nrunning = {NARROW}")
        opened.catalogue("".join([*models, narrow]))
        opened.environment["SLUICE_WORKER_CONCURRENCY"] = str(SLOTS)
        second = opened.worker()
        opened.up().ready(second)
        yield opened


@contextmanager
def rows(stack: Stack) -> Iterator[Sessions]:
    """A look at the rows."""
    opened = Sessions(stack.database_url)
    yield opened
    opened.close()


def caller(stack: Stack, account: str) -> httpx.Client:
    """A plain client of that account."""
    return stack.http(stack.mint(account))


def until_called(upstream: ScriptedUpstream, model: str, times: int) -> None:
    """Return when a model was called so often, since it was scripted."""
    upstream.wait_until(lambda seen: len(seen.calls_of(model)) >= times, 60)


def between(calls: list[Call], model: str, *, first: Call, last: Call) -> int:
    """How often a model was called from this call to that."""
    return sum(call.model == model for call in calls[calls.index(first) : calls.index(last)])


def most_at_once(calls: list[Call]) -> int:
    """How many of these were under way at one time."""
    moments = [(call.started_at, 1) for call in calls]
    moments += [(call.closed_at, -1) for call in calls if call.closed_at is not None]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def waited(session: Session, job_id: str) -> int:
    """Milliseconds from a job's acceptance to its start."""
    job = session.get_one(Job, ids.bare(job_id))
    assert job.started_at is not None
    return job.started_at - job.created_at


@pytest.mark.timeout(120 + BULK / 100)
def test_a_bulk_holds_up_nobody(one: Stack) -> None:
    """Held requests start at once, and a small batch is done long before the large one."""
    for model in ("test-1", "test-2", "test-3"):
        one.upstream.script(model, QUICK)
    client, http = one.client(one.mint("bulk")), caller(one, "bulk")
    file_id = uploaded(client, jsonl(*lines(BULK, "test-1")))
    bulk = client.batches.create(
        input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h"
    ).to_dict()
    until_called(one.upstream, "test-1", 2 * SLOTS)

    held = caller(one, "held")
    body = {"model": "test-2", "messages": [{"role": "user", "content": "Hi"}]}
    answers = [held.post(ENDPOINT, json=body) for _ in range(10)]
    small = submitted(caller(one, "small"), *lines(100, "test-3"))
    ended(caller(one, "small"), small, within=120)
    halfway = shown(http, bulk)

    assert {answer.status_code for answer in answers} == {200}
    with rows(one) as sessions, sessions() as session:
        waits = sorted(waited(session, answer.headers["x-job-id"]) for answer in answers)
    assert waits[len(waits) // 2] < SOON, waits
    assert (halfway["status"], halfway["counts"]["failed"]) == ("in_progress", 0)
    assert halfway["request_counts"]["completed"] < BULK / 2
    its_own = one.upstream.calls_of("test-3")
    others = between(one.upstream.calls, "test-1", first=its_own[0], last=its_own[-1])
    assert others < 2 * len(its_own), "not in turn"
    http.post(f"/v1/batches/{bulk['id']}/cancel")
    ended(http, bulk, "cancelled", within=60 + BULK / 500)


def test_a_paused_batch_stops_and_goes_on(one: Stack) -> None:
    """What had begun ends; the rest waits until it is resumed, and says why."""
    for model in ("test-4", "test-5"):
        one.upstream.script(model, QUICK)
    http = caller(one, "pausing")
    batch = submitted(http, *lines(60, "test-4"))
    until_called(one.upstream, "test-4", SLOTS)

    http.post(f"/v1/batches/{batch['id']}/pause")
    eventually(lambda: shown(http, batch)["counts"]["running"] == 0)
    submitted_later = submitted(http, *lines(20, "test-5"))
    ended(http, submitted_later)
    paused, calls = shown(http, batch), len(one.upstream.calls_of("test-4"))
    assert calls == paused["request_counts"]["completed"] < 60
    assert paused["status_reason"] == "paused"

    http.post(f"/v1/batches/{batch['id']}/resume")
    assert ended(http, batch)["request_counts"]["completed"] == 60
    assert len(one.upstream.calls_of("test-4")) == 60


def test_a_priority_counts_as_soon_as_it_is_changed(one: Stack) -> None:
    """The batch that has become urgent goes first, but for what was let in before."""
    for model in ("test-6", "test-7"):
        one.upstream.script(model, QUICK)
    http = caller(one, "urgent")
    patient = submitted(http, *lines(200, "test-6"), priority=5)
    urgent = submitted(http, *lines(30, "test-7"))
    eventually(lambda: shown(http, urgent)["status"] == "in_progress", 30)
    until_called(one.upstream, "test-6", SLOTS)
    assert one.upstream.calls_of("test-7") == []

    http.patch(f"/v1/batches/{urgent['id']}", json={"priority": 9})
    ended(http, urgent)

    assert shown(http, patient)["status"] == "in_progress"
    its_own = one.upstream.calls_of("test-7")
    assert between(one.upstream.calls, "test-6", first=its_own[0], last=its_own[-1]) <= SLOTS
    http.post(f"/v1/batches/{patient['id']}/cancel")


def test_only_so_many_lines_of_a_batch_run_at_once(one: Stack) -> None:
    """As many as it says, also when that changes."""
    one.upstream.script("test-8", SLOW)
    http = caller(one, "careful")
    batch = submitted(http, *lines(16, "test-8"), concurrency=2)
    until_called(one.upstream, "test-8", 10)
    calls = len(one.upstream.calls_of("test-8"))
    assert most_at_once(one.upstream.calls_of("test-8")) <= 2

    http.patch(f"/v1/batches/{batch['id']}", json={"concurrency": 1})
    ended(http, batch)

    assert most_at_once(one.upstream.calls_of("test-8")[calls + 2 :]) == 1


@pytest.mark.parametrize("lane", ["interactive", "batch"])
def test_a_planned_job_starts_when_its_time_has_come(one: Stack, lane: str) -> None:
    """Not before, and soon after."""
    http = caller(one, f"planned {lane}")
    body = {**line(0)["body"], "lane": lane}
    soon = clock.now() // 1000 + 2
    answer = http.post("/v1/jobs", json=[{**body, "run_at": soon + n % 2} for n in range(8)])
    jobs = answer.json()["data"]
    assert {job["status_reason"] for job in jobs} == {"scheduled"}

    def started(session: Session) -> list[tuple[int, int]]:
        bare = [ids.bare(job["id"]) for job in jobs]
        found = session.exec(select(Job).where(col(Job.id).in_(bare), col(Job.started_at) > 0))
        wanted = {ids.bare(job["id"]): job["run_at"] * 1000 for job in jobs}
        return [(wanted[job.id], job.started_at or 0) for job in found]

    with rows(one) as sessions:

        def all_started() -> bool:
            with sessions() as session:
                return len(started(session)) == len(jobs)

        eventually(all_started, 30)
        with sessions() as session:
            assert all(run_at <= then < run_at + 5_000 for run_at, then in started(session))


def test_a_place_and_a_time_are_what_then_happens(one: Stack) -> None:
    """Of jobs of several accounts: the order they start in, and about when."""
    one.upstream.script("test-9", Say(pieces=["Yes"], every=0.05))
    body = {**line(0, "test-9")["body"], "lane": "batch"}
    first, second, third = (caller(one, f"place {name}") for name in ("a", "b", "c"))
    many = first.post("/v1/jobs", json=[body] * 120).json()["data"]
    few = second.post("/v1/jobs", json=[body] * 40).json()["data"]
    batch = submitted(third, *lines(40, "test-9"))
    eventually(lambda: shown(third, batch)["request_counts"]["completed"] >= 5, 30)
    listed = third.get("/v1/jobs", params={"batch_id": batch["id"], "limit": 100}).json()["data"]
    asked = [*((first, job) for job in many[30::30]), *((second, job) for job in few[12::12])]
    asked += [(third, job) for job in listed[:30:10]]

    said = [told for http, job in asked if (told := Told.of(http, job["id"])).position is not None]
    assert len(said) >= 6
    ended(third, batch, within=120)
    for http, job in ((first, many[-1]), (second, few[-1])):
        eventually(lambda http=http, job=job: completed(http, job["id"]), 120)  # type: ignore[misc]

    with rows(one) as sessions, sessions() as session:
        rows_of = session.exec(select(Job).where(col(Job.model) == "test-9")).all()
        starts = {job.id: job.started_at or 0 for job in rows_of}
    for told in said:
        told.compare(starts)


class Told:
    """What a caller was told of a job's place, and when."""

    def __init__(self, job_id: str, at: int, queue: Object) -> None:
        self.job_id, self.at = job_id, at
        self.position: int | None = queue["position"]
        self.eta: dict[str, float] | None = queue["eta_seconds"]

    @classmethod
    def of(cls, http: httpx.Client, job_id: str) -> "Told":
        """As of now."""
        at = clock.now()
        return cls(str(ids.bare(job_id)), at, http.get(f"/v1/jobs/{job_id}").json()["queue"])

    def compare(self, starts: dict[str, int]) -> None:
        """Fail unless it came about like that."""
        assert self.position is not None
        assert self.eta is not None
        start = starts[self.job_id]
        before = sum(self.at < each < start for each in starts.values())
        assert before == pytest.approx(self.position, rel=0.2, abs=4 * SLOTS), vars(self)
        took = (start - self.at) / 1000
        assert self.eta["p50"] / 4 - 1 < took < self.eta["p90"] * 4 + 1, (took, vars(self))


def completed(http: httpx.Client, job_id: str) -> bool:
    """Whether a job has."""
    return bool(http.get(f"/v1/jobs/{job_id}").json()["status"] == "completed")


class Sampler:
    """Counts again and again what runs, by account and by model, and keeps the highest counts."""

    def __init__(self, stack: Stack) -> None:
        self.most = Counter[str]()
        self.looks = 0
        self._stack = stack
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        runs = (
            select(Account.name, Job.model)
            .join(Account, col(Account.id) == col(Job.account_id))
            .where(col(Job.status) == JobStatus.IN_PROGRESS.value)
        )
        with rows(self._stack) as sessions:
            while not self._over.wait(0.005):
                with sessions() as session:
                    found = session.exec(runs).all()
                now = Counter(name for pair in found for name in pair)
                self.most |= now
                self.looks += 1

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()


def limit(stack: Stack, account: str, *options: str) -> None:
    """`sluice accounts limit`."""
    assert stack.start("accounts", "limit", account, *options).wait() == 0


def test_no_more_run_than_an_account_and_a_model_may(two: Stack) -> None:
    """On all workers together, of every lane; and nobody else runs fewer for that."""
    for model in ("test-1", "test-2", "narrow"):
        two.upstream.script(model, SLOW)
    tight, wide = caller(two, "tight"), caller(two, "wide")
    limit(two, "tight", "--running", "2")
    body = {**line(0, "test-1")["body"], "background": True}

    with Sampler(two) as seen:
        batches = [
            (tight, submitted(tight, *lines(10, "test-1"))),
            (wide, submitted(wide, *lines(15, "narrow"))),
            (wide, submitted(wide, *lines(40, "test-2"))),
        ]
        for _ in range(8):
            tight.post(ENDPOINT, json=body)
            wide.post(ENDPOINT, json={**body, "model": "narrow"})
        for http, batch in batches:
            ended(http, batch)
        eventually(lambda: len(two.upstream.calls_of("test-1")) == 10 + 8, 60)
        eventually(lambda: len(two.upstream.calls_of("narrow")) == 15 + 8, 60)

    assert seen.looks > 50
    assert (seen.most["tight"], seen.most["narrow"]) == (2, NARROW)
    assert most_at_once(two.upstream.calls_of("test-1")) <= 2
    assert most_at_once(two.upstream.calls_of("narrow")) <= NARROW
    assert most_at_once(two.upstream.calls_of("test-2")) > NARROW


def test_turns_are_in_proportion_to_weights(two: Stack) -> None:
    """Three times the weight, three times the jobs, while both have any."""
    for model in ("test-0", "test-3"):
        two.upstream.script(model, QUICK)
    light, heavy = caller(two, "light"), caller(two, "heavy")
    limit(two, "heavy", "--weight", "3")
    batches = [
        (light, submitted(light, *lines(100, "test-0"))),
        (heavy, submitted(heavy, *lines(100, "test-3"))),
    ]
    for http, batch in batches:
        ended(http, batch)

    theirs, ours = two.upstream.calls_of("test-0"), two.upstream.calls_of("test-3")
    begun = max(theirs[10], ours[30], key=lambda call: call.started_at)
    lighter = between(two.upstream.calls, "test-0", first=begun, last=ours[-1])
    heavier = between(two.upstream.calls, "test-3", first=begun, last=ours[-1])
    assert 2 * lighter < heavier < 4.5 * lighter
