"""Redis stops, hangs, forgets, hangs up: the API goes on accepting, nothing is lost or doubled."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.fakes.upstream import Say, WaitFor
from tests.frames import frames, text_of
from tests.stack import Stack, eventually
from tests.valkey import Valkey

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""Which database it is makes no difference here."""
PROMPTLY = 3.0
"""Seconds for what should take one at most; Redis' own timeouts are longer."""
WORDS = [f" word{number}" for number in range(120)]
TEXT = "".join(WORDS)
PATH = "/v1/chat/completions"
REQUEST: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}


@contextmanager
def away(server: Valkey, how: str) -> Iterator[None]:
    """Redis refuses connections, or takes them and says nothing."""
    if how == "frozen":
        with server.frozen():
            yield
        return
    server.stop()
    try:
        yield
    finally:
        server.restart()


def submit(http: httpx.Client, **more: Any) -> str:
    """The id of a new background job."""
    response = http.post(PATH, json={**REQUEST, "background": True, **more})
    assert response.status_code == 202, response.read()
    job_id: str = response.headers["x-job-id"]
    return job_id


def status_of(http: httpx.Client, job_id: str) -> str:
    """A job's status by the native view."""
    found = http.get(f"/v1/jobs/{job_id}")
    assert found.status_code == 200, found.read()
    status: str = found.json()["status"]
    return status


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_without_redis_all_but_the_words_goes_on(
    stack: Stack, redis_server: Valkey, how: str
) -> None:
    """No answer hangs; what was accepted meanwhile is run once Redis is back, and only once."""
    go = threading.Event()
    stack.upstream.script("test-1", Say("so far"), WaitFor(go))
    stack.upstream.script("test", Say(TEXT))
    http = stack.up().http()
    running = submit(http, model="test-1")
    eventually(lambda: http.get(f"/v1/jobs/{running}").json()["progress"]["characters"])
    prompt, patient = stack.http(), stack.http()
    prompt.timeout = httpx.Timeout(PROMPTLY)

    with ThreadPoolExecutor() as pool:
        with away(redis_server, how):
            accepted = [submit(prompt) for _ in range(5)]
            stream = pool.submit(patient.post, PATH, json={**REQUEST, "stream": True})
            held = pool.submit(patient.post, PATH, json=REQUEST)
            looks = [
                prompt.get(f"{PATH}/{running}", params={"partial": "true"}),
                prompt.get(f"/v1/jobs/{running}"),
                prompt.post(f"{PATH}/{accepted[0]}", json={"metadata": {"a": "b"}}),
                prompt.get("/v1/jobs"),
                prompt.get("/health/live"),
                prompt.delete(f"{PATH}/{accepted[4]}"),
            ]
            cancels = [prompt.post(f"/v1/jobs/{each}/cancel") for each in (accepted[3], running)]
            ready = prompt.get("/health/ready")
            eventually(lambda: len(http.get("/v1/jobs").json()["data"]) == 7)
        seen = list(frames(iter([stream.result().content])))
        whole = held.result().json()["choices"][0]["message"]["content"]
    eventually(lambda: {status_of(http, each) for each in accepted[:3]} == {"completed"}, 20)

    assert [look.status_code for look in looks] == [200] * 6
    assert [cancel.status_code for cancel in cancels] == [200] * 2
    assert (ready.status_code, ready.json()["checks"]["redis"] == "ok") == (503, False)
    assert (text_of(seen), seen[-1].data) == (TEXT, "[DONE]")
    assert whole == TEXT
    eventually(lambda: status_of(http, running) == "cancelled", 20)
    assert status_of(http, accepted[3]) == "cancelled"
    events = f"/v1/jobs/{accepted[3]}/events"
    end = list(frames(iter([http.get(events).content])))[-1]
    assert end.event == "job.cancelled"
    assert http.get(events, headers={"last-event-id": str(end.id)}).status_code == 204
    assert len(stack.upstream.calls_of("test")) == 5
    assert len(stack.upstream.calls_of("test-1")) == 1


@pytest.mark.parametrize("trouble", ["emptied", "hanging up"])
def test_readers_bear_a_redis_that_forgets_and_hangs_up(
    stack: Stack, redis_server: Valkey, trouble: str
) -> None:
    """Every reader gets every chunk once, whatever Redis does ten times while they are said."""
    stack.upstream.script("test", Say(pieces=WORDS, every=0.02))
    http = stack.up().http()
    seen = []

    with Redis(port=redis_server.port) as redis, ThreadPoolExecutor() as pool:
        with http.stream("POST", PATH, json={**REQUEST, "stream": True}) as response:
            job_id = response.headers["x-job-id"]
            replay = f"{PATH}/{job_id}?stream=true"
            others = [pool.submit(stack.http().get, replay) for _ in range(3)]
            for frame in frames(response.iter_raw()):
                seen.append(frame)
                if frame.id is not None and frame.id % 12 == 0:
                    if trouble == "emptied":
                        redis.flushall()
                    else:
                        redis.client_kill_filter(_type="pubsub")
                        redis.client_kill_filter(_type="normal", skipme=True)
        streams = [seen, *(list(frames(iter([each.result().content]))) for each in others)]
    last = submit(http)

    for each in streams:
        numbers = [frame.id for frame in each]
        assert numbers == list(range(1, len(numbers) + 1))
        assert text_of(each) == TEXT
    eventually(lambda: status_of(http, last) == "completed", 30)
    assert http.get(f"/v1/jobs/{job_id}").json()["attempt"] == 1
    assert len(stack.upstream.calls_of("test")) == 2
