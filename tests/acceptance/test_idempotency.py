"""Requests that are sent again, through real processes and the official SDK."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.upstream import Say, WaitFor
from tests.frames import frames
from tests.proxy import Link
from tests.stack import PLAIN, Stack, eventually
from tests.valkey import free_port

PATH = "/v1/chat/completions"


def request(text: str = "Hello there", **fields: Any) -> dict[str, Any]:
    """A body that no other test sends."""
    return {"model": "test", "messages": [{"role": "user", "content": text}], **fields}


def jobs_of(stack: Stack, key: str) -> list[dict[str, Any]]:
    """The jobs of the account behind a key."""
    data: list[dict[str, Any]] = stack.http(key).get("/v1/jobs?limit=100").json()["data"]
    return data


@pytest.fixture
def key(service: Stack, request: pytest.FixtureRequest) -> str:
    """A key of an account that has no jobs yet."""
    return service.mint(request.node.name)


def test_a_held_request_is_answered_again(service: Stack, key: str) -> None:
    """Same key, same body: the same job's answer; another body is refused and names the header."""
    http = service.http(key)
    name = {"idempotency-key": "order-17"}

    first = http.post(PATH, json=request(), headers=name)
    again = http.post(PATH, json=request(), headers=name)
    other = http.post(PATH, json=request("Other"), headers=name)

    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert again.headers["x-job-id"] == first.headers["x-job-id"]
    assert other.status_code == 422
    error = other.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
    assert len(jobs_of(service, key)) == 1


def test_a_stream_is_replayed(service: Stack, key: str) -> None:
    """The second one has every frame of the first."""
    http = service.http(key)
    body, name = request("one two three", stream=True), {"idempotency-key": "s"}

    first = http.post(PATH, json=body, headers=name)
    again = http.post(PATH, json=body, headers=name)

    assert again.headers["idempotency-replayed"] == "true"
    assert list(frames(iter([again.content]))) == list(frames(iter([first.content])))


def test_an_array_is_accepted_once(service: Stack, key: str) -> None:
    """All its jobs come back in their order; a refused array leaves the key free."""
    http = service.http(key)
    name = {"idempotency-key": "array"}
    refused = http.post("/v1/jobs", json=[request(), request(temperature=9)], headers=name)
    assert refused.status_code == 400

    many = [request(f"Job {number}") for number in range(5)]
    first = http.post("/v1/jobs", json=many, headers=name)
    again = http.post("/v1/jobs", json=many, headers=name)

    ids = [job["id"] for job in first.json()["data"]]
    assert [job["id"] for job in again.json()["data"]] == ids
    assert again.headers["idempotency-replayed"] == "true"
    assert len(jobs_of(service, key)) == 5


def test_an_sdks_repetition_of_an_array_finds_all_its_jobs(service: Stack, key: str) -> None:
    """Without a key, as they send it; in the same order."""
    http, many = service.http(key), [request(f"Job {number}") for number in range(3)]

    first, again = (
        http.post("/v1/jobs", json=many, headers={"x-stainless-retry-count": count}).json()["data"]
        for count in ("0", "1")
    )

    assert [job["id"] for job in again] == [job["id"] for job in first]
    assert len(jobs_of(service, key)) == 3


@pytest.fixture
def second_url(service: Stack) -> Iterator[str]:
    """Another api process beside the service's own."""
    port = free_port()
    process = service.api(port)
    yield f"http://127.0.0.1:{port}"
    process.stop()


def test_many_at_once_on_two_processes_are_one(service: Stack, key: str, second_url: str) -> None:
    """One creates, the others attach, wherever they arrive; all get the one answer."""
    headers = {"authorization": f"Bearer {key}", "idempotency-key": "race"}

    def post(number: int) -> httpx.Response:
        url = (service.url, second_url)[number % 2]
        return httpx.post(url + PATH, json=request("race"), headers=headers, timeout=60)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(post, range(16)))

    assert [answer.status_code for answer in answers] == [200] * 16
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(jobs_of(service, key)) == 1


def test_an_sdk_that_gave_up_twice_made_one_job(service: Stack, key: str) -> None:
    """Its own repetitions attach to the job of the connection it gave up."""
    go, sent = Event(), list[httpx.Request]()
    service.upstream.script("test-1", WaitFor(go), Say("At last"))
    client = service.client(
        key,
        timeout=1.5,
        max_retries=5,
        http_client=openai.DefaultHttpxClient(verify=PLAIN, event_hooks={"request": [sent.append]}),
    )
    # It says that it waits longer than it does, as if the network had swallowed our answer.
    patient = {"x-stainless-read-timeout": "600"}

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(
            lambda: client.chat.completions.create(**request(model="test-1"), extra_headers=patient)
        )
        eventually(lambda: len(sent) >= 3, 30)
        go.set()
        answer = asked.result(30)

    assert answer.choices[0].message.content == "At last"
    assert len(jobs_of(service, key)) == 1
    assert len(service.upstream.calls_of("test-1")) == 1


def test_an_sdk_that_streams_does_not_pay_twice(service: Stack, key: str) -> None:
    """A connection that breaks before the first word is repeated, and attaches as well."""
    go = Event()
    service.upstream.script("test-2", WaitFor(go), Say("one two"))
    body = request("stream", model="test-2", stream=True)
    headers = {"authorization": f"Bearer {key}"}

    with Link(service.port) as link:
        url = f"http://127.0.0.1:{link.port}{PATH}"
        first = {**headers, "x-stainless-retry-count": "0"}
        with ThreadPoolExecutor(1) as threads:
            broken = threads.submit(httpx.post, url, json=body, headers=first, timeout=60)
            eventually(lambda: service.upstream.calls_of("test-2"))
            link.drop()
            with pytest.raises(httpx.HTTPError):
                broken.result(30)
    go.set()
    second = {**headers, "x-stainless-retry-count": "1"}
    answer = httpx.post(service.url + PATH, json=body, headers=second, timeout=60)

    assert answer.headers["idempotency-replayed"] == "true"
    texts = [frame.json for frame in frames(iter([answer.content])) if frame.json]
    assert [part["choices"][0]["delta"].get("content") for part in texts][-2:-1] == [" two"]
    assert len(jobs_of(service, key)) == 1


def test_equal_requests_of_an_sdk_are_not_confused(stack: Stack) -> None:
    """A repetition never joins a job that another connection reads: that is another request."""
    go = Event()
    stack.upstream.script("test", WaitFor(go), Say("Hi"))
    stack.environment["SLUICE_DISCONNECT_GRACE"] = "3"
    stack.up()
    headers = {"authorization": f"Bearer {stack.key}"}

    with ThreadPoolExecutor(2) as threads:
        posts = []
        for count in ("0", "1"):
            sent = {**headers, "x-stainless-retry-count": count}
            posts.append(
                threads.submit(
                    httpx.post, stack.url + PATH, json=request(), headers=sent, timeout=60
                )
            )
            eventually(lambda: len(stack.upstream.calls) == len(posts), 30)
        go.set()
        first, second = (post.result(30).json()["id"] for post in posts)

    assert first != second


def test_an_sdk_finds_its_job_when_its_api_was_killed(stack: Stack) -> None:
    """Nobody noted that the reader left: its presence lapses, and the job is taken up."""
    go = Event()
    stack.upstream.script("test", WaitFor(go), Say("Hi"))
    stack.environment["SLUICE_DISCONNECT_GRACE"] = "6"
    worker, api = stack.worker(), stack.api()
    stack.ready(api, worker)
    other = free_port()
    stack.api(other)
    headers = {"authorization": f"Bearer {stack.key}"}

    def post(port: int, count: str) -> httpx.Response:
        sent = {**headers, "x-stainless-retry-count": count}
        url = f"http://127.0.0.1:{port}{PATH}"
        return httpx.post(url, json=request(), headers=sent, timeout=60)

    with ThreadPoolExecutor(2) as threads:
        broken = threads.submit(post, stack.port, "0")
        eventually(lambda: stack.upstream.calls, 30)
        api.kill()
        with pytest.raises(httpx.HTTPError):
            broken.result(30)
        repeated = threads.submit(post, other, "1")
        stack.port = other
        eventually(lambda: readers(stack) == 1, 30)
        go.set()
        answer = repeated.result(30)

    assert answer.headers["idempotency-replayed"] == "true"
    assert answer.json()["choices"][0]["message"]["content"] == "Hi"
    assert len(stack.upstream.calls) == 1


def readers(stack: Stack) -> float:
    """How many requests listen at the api."""
    lines = httpx.get(f"{stack.url}/metrics", verify=PLAIN).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("sluice_readers "))
