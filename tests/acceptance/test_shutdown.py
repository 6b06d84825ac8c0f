"""SIGTERM to an api: what is open has its grace, and then every client goes on at another one."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.upstream import Say, WaitFor
from tests.frames import Frame, frames, text_of
from tests.stack import Process, Stack, eventually
from tests.valkey import free_port

pytestmark = pytest.mark.parametrize("service", ["sqlite"], indirect=True)
"""Which database it is makes no difference here."""
WHOLE = "one two three four five six"
PATH = "/v1/chat/completions"
REQUEST: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}


class Leaving:
    """An api that a test stops, beside the one that stays."""

    def __init__(self, service: Stack) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._service = service
        self.process: Process

    def start(self, grace: str = "0.2") -> Process:
        """Start it, again after its end, and wait until it answers."""
        self.process = self._service.api(self.port, SLUICE_SHUTDOWN_GRACE=grace)
        return self.process

    def is_asked_to_stop(self) -> None:
        """SIGTERM; it accepts no connection any more."""
        self.process.send(signal.SIGTERM)
        eventually(self._refuses)

    def _refuses(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return True
        return False


@pytest.fixture
def leaving(service: Stack) -> Leaving:
    """An api to be started and stopped."""
    return Leaving(service)


@pytest.fixture
def go(service: Stack) -> Iterator[threading.Event]:
    """The model says half of it, and the rest when it may."""
    event = threading.Event()
    service.upstream.script("test", Say("one two three"), WaitFor(event), Say(" four five six"))
    yield event
    event.set()


@pytest.fixture
def http(service: Stack, leaving: Leaving) -> Iterator[httpx.Client]:
    """A client of the api that is stopped."""
    headers = {"authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=leaving.url, headers=headers, timeout=60) as client:
        yield client


def says_three(reading: Iterator[Frame]) -> list[Frame]:
    """The frames until the model pauses."""
    seen: list[Frame] = []
    while text_of(seen) != "one two three":
        seen.append(next(reading))
    return seen


def test_what_ends_in_time_ends_as_if_nothing_happened(
    leaving: Leaving, http: httpx.Client, go: threading.Event
) -> None:
    """A stream goes on during the grace while new connections are refused; the exit code is 0."""
    api = leaving.start(grace="20")

    with http.stream("POST", PATH, json={**REQUEST, "stream": True}) as response:
        reading = frames(response.iter_raw())
        first = says_three(reading)
        leaving.is_asked_to_stop()
        go.set()
        rest = list(reading)

    assert text_of(first + rest) == WHOLE
    assert (rest[-1].event, rest[-1].data) == (None, "[DONE]")
    assert api.wait() == 0


def test_a_stream_that_has_to_end_says_so_and_goes_on_elsewhere(
    service: Stack, leaving: Leaving, http: httpx.Client, go: threading.Event
) -> None:
    """It ends with an error that leaves the cursor alone; the other api has exactly the rest."""
    api = leaving.start()

    with http.stream("POST", PATH, json={**REQUEST, "stream": True}) as response:
        job_id = response.headers["x-job-id"]
        reading = frames(response.iter_raw())
        seen = says_three(reading)
        api.send(signal.SIGTERM)
        [error, done] = list(reading)
    assert api.wait() == 0
    go.set()
    after = {"stream": "true", "starting_after": str(seen[-1].id)}
    found = service.http().get(f"{PATH}/{job_id}", params=after)
    rest = list(frames(iter([found.content])))

    assert (error.id, error.event, done.data) == (None, "error", "[DONE]")
    said = error.json["error"]
    assert (said["code"], said["retryable"], said["job_id"]) == ("draining", True, job_id)
    assert [frame.id for frame in seen + rest] == list(range(1, len(seen + rest) + 1))
    assert text_of(seen + rest) == WHOLE
    job = service.http().get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["attempt"]) == ("completed", 1)


def test_the_sdk_raises_when_its_stream_has_to_end(
    service: Stack, leaving: Leaving, go: threading.Event
) -> None:
    """What was cut short must not pass for the whole."""
    api = leaving.start()

    with service.client().with_options(base_url=f"{leaving.url}/v1") as client:
        chunks = client.chat.completions.create(**REQUEST, stream=True)
        while next(chunks).choices[0].delta.content != " three":
            pass
        api.send(signal.SIGTERM)
        with pytest.raises(openai.APIError) as raised:
            next(chunks)

    assert raised.value.code == "draining"
    assert api.wait() == 0


def test_a_held_request_is_told_to_ask_again(
    service: Stack, leaving: Leaving, http: httpx.Client, go: threading.Event
) -> None:
    """503, with the job it has become; a poll that waits just gets what there is."""
    api = leaving.start()
    with ThreadPoolExecutor() as pool:
        holding = pool.submit(http.post, PATH, json=REQUEST)
        [job] = eventually(lambda: http.get("/v1/jobs?status=in_progress").json()["data"])
        waiting = pool.submit(http.get, f"{PATH}/{job['id']}", headers={"prefer": "wait=50"})
        eventually(lambda: "sluice_readers 2.0" in http.get("/metrics").text)
        leaving.is_asked_to_stop()
        held, waited = holding.result(), waiting.result()
    assert api.wait() == 0
    go.set()

    assert (held.status_code, held.headers["retry-after"]) == (503, "1")
    assert "x-should-retry" not in held.headers
    error = held.json()["error"]
    assert (error["code"], error["job_id"]) == ("draining", job["id"])
    assert (waited.status_code, waited.json()["status"]) == (200, "in_progress")
    assert held.headers["x-job-id"] == job["id"]
    there = service.http().get(held.headers["location"], headers={"prefer": "wait=50"}).json()
    assert there["choices"][0]["message"]["content"] == WHOLE


def test_native_events_go_on_elsewhere(
    service: Stack, leaving: Leaving, http: httpx.Client, go: threading.Event
) -> None:
    """They end between two frames; an EventSource comes back with the last id it saw."""
    api = leaving.start()
    job_id = http.post("/v1/jobs", json=REQUEST).json()["id"]

    with http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        reading = frames(response.iter_raw())
        seen = says_three(reading)
        api.send(signal.SIGTERM)
        assert list(reading) == []
    assert api.wait() == 0
    go.set()
    last = {"last-event-id": str(seen[-1].id)}
    found = service.http().get(f"/v1/jobs/{job_id}/events", headers=last)
    rest = list(frames(iter([found.content])))

    assert text_of(seen + rest) == WHOLE
    assert rest[-1].event == "job.completed"


def test_watching_outlasts_a_restart(
    service: Stack, leaving: Leaving, http: httpx.Client, go: threading.Event
) -> None:
    """`sluice watch` goes on at the same address and prints the answer once."""
    leaving.start()
    job_id = http.post("/v1/jobs", json=REQUEST).json()["id"]
    words = ["watch", job_id, "--url", leaving.url, "--api-key", service.key]

    with subprocess.Popen(
        [sys.executable, "-m", "cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        begun = watching.stdout.read(len("one two three"))
        leaving.is_asked_to_stop()
        assert leaving.process.wait() == 0
        leaving.start()
        go.set()
        rest = watching.stdout.read()

    assert begun + rest == f"{WHOLE}\n"
    assert watching.returncode == 0


def test_the_same_signal_again_ends_it_at_once(
    leaving: Leaving, http: httpx.Client, go: threading.Event
) -> None:
    """Whoever asks twice does not want to wait for the grace."""
    api = leaving.start(grace="300")

    with http.stream("POST", PATH, json={**REQUEST, "stream": True}) as response:
        reading = frames(response.iter_raw())
        says_three(reading)
        leaving.is_asked_to_stop()
        api.send(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(reading)

    api.wait()
