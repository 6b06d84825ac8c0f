"""Jobs that must start, or must stop, by a certain moment."""

from functools import partial
from typing import Any

import pytest

from tests.fakes.upstream import Say, Stall
from tests.stack import Stack, eventually

PATH = "/v1/chat/completions"
REQUEST = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}
SHORTLY = {"cancel-after": "1s"}


@pytest.fixture
def silent(service: Stack) -> dict[str, Any]:
    """A request of a model that says two words and then nothing."""
    service.upstream.script("test-9", Say("So far"), Stall())
    return {**REQUEST, "model": "test-9"}


def test_a_held_request_ends_at_its_deadline(service: Stack, silent: dict[str, Any]) -> None:
    """504, and no SDK may send it again; the upstream is let go, what was said is kept."""
    http = service.http()

    answer = http.post(PATH, json=silent, headers=SHORTLY)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    job_id = answer.headers["x-job-id"]
    job = http.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["error"]["code"]) == ("cancelled", "deadline_exceeded")
    assert job["stop_at"] == pytest.approx(job["created_at"] + 1, abs=1)
    kept = http.get(f"{PATH}/{job_id}", params={"partial": "true"}).json()
    assert kept["choices"][0]["message"]["content"] == "So far"
    assert service.upstream.calls_of("test-9")[-1].finished == "closed_by_client"


def test_a_stream_says_that_its_deadline_came(service: Stack, silent: dict[str, Any]) -> None:
    """The text, then an error, then the end."""
    answer = service.http().post(PATH, json={**silent, "stream": True}, headers=SHORTLY)

    assert b"So" in answer.content
    assert b"deadline_exceeded" in answer.content
    assert answer.content.endswith(b"data: [DONE]\n\n")


def test_what_has_not_started_by_its_deadline_never_does(stack: Stack) -> None:
    """It expires, whether it was to start or to stop by then; no attempt is made."""
    stack.environment["SLUICE_CATALOG"] = str(stack.home / "models.toml")
    stack.start("worker", SLUICE_WORKER_CONCURRENCY="1")
    stack.ready(stack.api())
    stack.upstream.script("test-1", Stall())
    http = stack.http()
    busy = http.post("/v1/jobs", json={**REQUEST, "model": "test-1"}).json()["id"]
    eventually(lambda: stack.upstream.calls_of("test-1"))

    stopped = http.post("/v1/jobs", json=REQUEST, headers=SHORTLY).json()["id"]
    soon = http.get(f"/v1/jobs/{stopped}").json()["created_at"] + 1
    unstarted = http.post("/v1/jobs", json={**REQUEST, "expires_at": soon}).json()["id"]

    def expired(job_id: str) -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
        return job if job["status"] == "expired" else None

    ends = {each: eventually(partial(expired, each)) for each in (stopped, unstarted)}
    for each in ends:
        assert http.get(f"/v1/jobs/{each}/attempts").json()["data"] == []
    http.post(f"/v1/jobs/{busy}/cancel")

    assert ends[stopped]["error"]["code"] == "deadline_exceeded"
    assert ends[unstarted]["error"]["code"] == "job_expired"
    assert stack.upstream.calls_of("test") == []


def test_a_strange_span_is_refused(service: Stack) -> None:
    """Nothing is accepted, and the error names the header."""
    answer = service.http().post(PATH, json=REQUEST, headers={"cancel-after": "soon"})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Cancel-After"
