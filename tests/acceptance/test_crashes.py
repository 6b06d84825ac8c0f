"""Processes die in the middle of things: nothing is lost, nothing is said twice."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.cgroups import memory_group
from tests.fakes.upstream import Say, Stall, Status, Step, Usage
from tests.frames import Frame, frames, text_of
from tests.stack import Stack, eventually
from tests.valkey import Valkey, free_port

WORDS = [f" word{number}" for number in range(150)]
TEXT = "".join(WORDS)
SLOWLY = Say(pieces=WORDS, every=0.02)
REQUEST = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}
LITTLE = 16 * 1024 * 1024
"""Bytes: enough for small jobs."""

CHAIN = """
[models.test]
upstream = "fake"
upstream_model = "first"
context_window = 8192
max_output_tokens = 4096
input_price = 100
output_price = 200
fallbacks = ["second"]

[models.second]
upstream = "fake"
context_window = 8192
max_output_tokens = 4096
input_price = 1
output_price = 2
"""

ANY_DATABASE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""Which one it is makes no difference here."""


def stored_text(http: httpx.Client, job_id: str) -> str | None:
    """The stored result of a job, once it has completed."""
    found = http.get(f"/v1/chat/completions/{job_id}").json()
    if found["status"] != "completed":
        return None
    content: str = found["choices"][0]["message"]["content"]
    return content


def outcomes(http: httpx.Client, job_id: str) -> list[str]:
    """How each attempt at a job ended."""
    return [each["outcome"] for each in http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]]


def read_until(url: str, key: str, count: int, **request: Any) -> tuple[str, list[Frame]]:
    """The first frames of a stream, and the id of its job."""
    headers = {"authorization": f"Bearer {key}"}
    seen = []
    with httpx.stream(headers=headers, url=url, timeout=30, **request) as response:
        assert response.status_code == 200, response.read()
        for frame in frames(response.iter_raw()):
            seen.append(frame)
            if len(seen) == count:
                break
        return response.headers["x-job-id"], seen


def read_stream(stack: Stack, *, on_tenth: Callable[[], None]) -> list[Frame]:
    """A whole stream; something happens when its tenth frame has come."""
    headers = {"authorization": f"Bearer {stack.key}"}
    path, body = f"{stack.url}/v1/chat/completions", {**REQUEST, "stream": True}
    seen = []
    with httpx.stream("POST", path, json=body, headers=headers, timeout=60) as response:
        for frame in frames(response.iter_raw()):
            seen.append(frame)
            if len(seen) == 10:
                on_tenth()
    return seen


@ANY_DATABASE
def test_a_stream_outlives_its_api(stack: Stack) -> None:
    """The api is killed in mid-stream; on another one the reader loses and repeats nothing."""
    stack.upstream.script("test", SLOWLY)
    worker, api = stack.worker(), stack.api()
    stack.ready(api, worker)
    http = stack.http()
    path = f"{stack.url}/v1/chat/completions"

    job_id, first = read_until(path, stack.key, 20, method="POST", json={**REQUEST, "stream": True})
    api.kill()
    stack.port = free_port()
    stack.api(stack.port)
    replay = f"{stack.url}/v1/chat/completions/{job_id}"
    after = {"stream": "true", "starting_after": first[-1].id}
    _, rest = read_until(replay, stack.key, 1000, method="GET", params=after)

    numbers = [frame.id for frame in first + rest if frame.json]
    assert numbers == list(range(1, len(numbers) + 1))
    assert text_of(first + rest) == TEXT
    http.base_url = httpx.URL(stack.url)
    assert stored_text(http, job_id) == TEXT


def test_a_background_job_outlives_its_worker(stack: Stack) -> None:
    """A worker is killed in mid-job; another finishes it, and a replay is one consistent text."""
    stack.upstream.script("test", SLOWLY)
    worker, api = stack.worker(), stack.api()
    stack.ready(api, worker)
    http = stack.http()

    submitted = http.post(
        "/v1/chat/completions", json={**REQUEST, "background": True, "stream": True}
    )
    job_id = submitted.headers["x-job-id"]
    assert text_of(list(frames(iter([submitted.content])))) == TEXT

    submitted = http.post("/v1/chat/completions", json={**REQUEST, "background": True})
    job_id = submitted.headers["x-job-id"]
    eventually(lambda: http.get(f"/v1/jobs/{job_id}").json()["progress"]["deltas"] > 5)
    worker.kill()
    stack.worker()
    text = eventually(lambda: stored_text(http, job_id), 30)

    job = http.get(f"/v1/jobs/{job_id}").json()
    assert (job["attempt"], text) == (2, TEXT)
    assert outcomes(http, job_id) == ["lost", "completed"]
    replay = http.get(f"/v1/chat/completions/{job_id}", params={"stream": "true"})
    assert text_of(list(frames(iter([replay.content])))) == TEXT


@ANY_DATABASE
def test_a_worker_without_memory_dies_and_its_jobs_do_not(stack: Stack) -> None:
    """One job makes the kernel kill its worker; that one and its neighbours get their answers."""
    half: list[Step] = [Say("one"), Stall()]
    whole = [Say(TEXT)]
    stack.upstream.script_calls("test", half, half, whole)
    stack.upstream.script_calls("test-1", [Say(pieces=["much " * 100_000] * 400)], whole)
    worker, api = stack.worker(), stack.api()
    with memory_group() as group, ThreadPoolExecutor() as callers:
        group.take(worker.pid)
        stack.ready(api, worker)
        http = stack.http()
        path, background = "/v1/chat/completions", {**REQUEST, "background": True}
        held = callers.submit(http.post, path, json=REQUEST)
        neighbour = http.post(path, json=background).headers["x-job-id"]
        stack.upstream.wait_until(lambda up: [call.deltas for call in up.calls] == [2, 2], 20)

        group.allow(LITTLE)
        hungry = http.post(path, json={**background, "model": "test-1"}).headers["x-job-id"]

        assert worker.wait(60) == -signal.SIGKILL
        assert group.kills == 1
        stack.worker()
        answer = held.result(60)
        jobs = [answer.headers["x-job-id"], neighbour, hungry]
        texts = [eventually(lambda: stored_text(http, job), 30) for job in jobs]  # noqa: B023

    assert (answer.status_code, texts) == (200, [TEXT] * 3)
    assert [outcomes(http, job) for job in jobs] == [["lost", "completed"]] * 3


@ANY_DATABASE
def test_a_read_stream_whose_worker_dies_fails_loudly(stack: Stack) -> None:
    """What a reader has seen cannot be unsaid: the stream ends with an error, not in silence."""
    stack.upstream.script("test", SLOWLY)
    worker, api = stack.worker(), stack.api()
    stack.ready(api, worker)

    def lose_the_worker() -> None:
        worker.kill()
        stack.worker()

    seen = read_stream(stack, on_tenth=lose_the_worker)

    assert seen[-2].event == "error"
    assert seen[-2].json["error"]["code"] == "worker_lost"
    assert seen[-1].data == "[DONE]"
    [job] = stack.http().get("/v1/jobs").json()["data"]
    kept = stack.http().get(f"/v1/chat/completions/{job['id']}", params={"partial": "true"}).json()
    assert kept["choices"][0]["message"]["content"] == text_of(seen[:-2])
    _, again = read_until(
        f"{stack.url}/v1/chat/completions/{job['id']}",
        stack.key,
        1000,
        method="GET",
        params={"stream": "true", "starting_after": seen[4].id},
    )
    assert [(frame.id, frame.data) for frame in again] == [
        (frame.id, frame.data) for frame in seen[5:]
    ]


@ANY_DATABASE
@pytest.mark.parametrize("torn", [0, 100])
def test_redis_comes_back_and_the_reader_misses_nothing(
    stack: Stack, redis_server: Valkey, torn: int
) -> None:
    """Redis is killed and restarted while a job streams, its file whole or without its end."""
    stack.upstream.script("test", SLOWLY)
    worker, api = stack.worker(), stack.api()
    stack.ready(api, worker)

    def restart_redis() -> None:
        redis_server.kill()
        [written] = redis_server.directory.glob("appendonlydir/*.incr.aof")
        os.truncate(written, written.stat().st_size - torn)
        redis_server.restart()

    seen = read_stream(stack, on_tenth=restart_redis)

    assert text_of(seen) == TEXT
    assert seen[-1].data == "[DONE]"
    assert worker.running
    assert api.running


@ANY_DATABASE
def test_a_worker_dies_between_two_models(stack: Stack) -> None:
    """It has settled the first model's failure and is about to claim for the next: another does."""
    stack.catalogue(CHAIN)
    stack.upstream.script("first", Status(503))
    stack.upstream.script("second", Say("Here I am"), Usage(10, 20))
    stack.fund("ours", 1)
    doomed = stack.start("worker", "attempt_ended", "queued", module="tests.faults.doomed")
    stack.ready(stack.api(SLUICE_MAX_ATTEMPTS="1"), doomed)
    http = stack.http()
    submitted = http.post("/v1/chat/completions", json={**REQUEST, "background": True})
    job_id = submitted.headers["x-job-id"]

    assert doomed.wait() == -signal.SIGKILL
    assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
    assert stack.upstream.calls_of("second") == []
    stack.worker()
    assert eventually(lambda: stored_text(http, job_id), 60) == "Here I am"

    tries = http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]
    words = [(each["model"], each["outcome"]) for each in tries]
    assert words == [("test", "fell_back"), ("second", "completed")]
    entries = http.get("/v1/credits/ledger").json()["data"]
    [charged] = [entry["credits"] for entry in entries if entry["kind"] == "charge"]
    balance = http.get("/v1/credits/balance").json()
    assert charged == -50e-6  # 10 tokens in, 20 out
    assert (balance["total_credits"], balance["held_credits"]) == (1 + charged, 0)


def test_a_worker_hands_its_jobs_back_when_it_is_asked_to_stop(stack: Stack) -> None:
    """A restart under load costs no attempt and no error."""
    stack.upstream.script("test", Say(pieces=WORDS, every=0.1))
    worker, api = stack.worker(SLUICE_DRAIN="PT0.2S"), stack.api()
    stack.ready(api, worker)
    http = stack.http()
    job_id = http.post("/v1/chat/completions", json={**REQUEST, "background": True}).headers[
        "x-job-id"
    ]
    eventually(lambda: http.get(f"/v1/jobs/{job_id}").json()["progress"]["deltas"] > 5)
    stack.upstream.script("test", Say(TEXT))

    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    stack.worker()
    text = eventually(lambda: stored_text(http, job_id), 20)

    assert text == TEXT
    assert outcomes(http, job_id) == ["handed_back", "completed"]
