"""The front over HTTP: submit, find, list, cancel, delete, label, and who may."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlmodel import Session

from shared import clock, jobs, keys, retention
from shared.jobs import Submission
from shared.lifecycle import TERMINAL, Lane
from shared.tables import Job
from tests.factories import Sessions
from tests.fakes.upstream import Say, Stall, Status
from tests.stack import Stack, eventually

SAID = "tangerine"
"""In every prompt; it must never show in a log."""
ASKED = {"model": "test", "messages": [{"role": "user", "content": SAID}]}
LATER = 3_600
JOB_KEYS = {
    *("id", "object", "status", "status_reason", "model", "served_model", "provider", "lane"),
    *("attempt", "max_attempts", "created_at", "run_at", "started_at", "first_delta_at"),
    *(
        "completed_at",
        "expires_at",
        "stop_at",
        "queue",
        "progress",
        "usage",
        "cost",
        "error",
        "batch_id",
    ),
    *("custom_id", "metadata", "warnings", "request_id", "links"),
}


@pytest.fixture
def http(service: Stack) -> Iterator[httpx.Client]:
    """A client of an account of the test's own, on a model that answers at once."""
    service.upstream.script("test", Say("Hello there."))
    with service.http(service.mint(f"account {time.monotonic_ns()}")) as client:
        yield client


def planned(**fields: Any) -> dict[str, Any]:
    """A request that waits for its time."""
    return {**ASKED, "run_at": clock.now() // 1000 + LATER, **fields}


def submit(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """A job, just accepted."""
    response = http.post("/v1/jobs", json={**ASKED, **fields})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def get(http: httpx.Client, path: str, **params: Any) -> Any:
    """The JSON at a path."""
    response = http.get(path, params=params)
    assert response.status_code == 200, response.text
    return response.json()


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job once it has ended."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = get(http, f"/v1/jobs/{job_id}")
        return job if job["status"] in TERMINAL else None

    return eventually(look, within=20)


def listed(http: httpx.Client, path: str = "/v1/jobs", **params: Any) -> list[str]:
    """The ids of one page."""
    return [row["id"] for row in get(http, path, **params)["data"]]


@contextmanager
def rows(service: Stack) -> Iterator[Session]:
    """A transaction of the service's database."""
    sessions = Sessions(service.database_url)
    with sessions() as session:
        yield session
    sessions.close()


def log_lines(service: Stack, name: str) -> list[dict[str, Any]]:
    """What a process has logged so far."""
    text = next(service.home.glob(f"{name}-*.log")).read_text()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_job_goes_through_the_queue(service: Stack, http: httpx.Client) -> None:
    """It is accepted with its address, ends, and its story can be read."""
    response = http.post("/v1/jobs", json={**ASKED, "metadata": {"k": "v"}})

    accepted = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{accepted['id']}"
    assert set(accepted) == JOB_KEYS
    assert (accepted["status"], accepted["object"]) == ("queued", "job")
    assert accepted["status_reason"] == "waiting_for_worker"
    assert accepted["request_id"] == response.headers["x-request-id"]

    job = ended(http, accepted["id"])
    assert (job["status"], job["attempt"], job["error"]) == ("completed", 1, None)
    assert job["metadata"] == {"k": "v"}
    assert job["usage"]["total_tokens"] > 0
    assert job["progress"]["characters"] == len("Hello there.")
    assert accepted["created_at"] <= job["started_at"] <= job["completed_at"]
    for link in ("self", "completion", "events"):
        assert http.get(job["links"][link]).status_code == 200
    [tried] = get(http, f"/v1/jobs/{job['id']}/attempts")["data"]
    assert (tried["number"], tried["outcome"], tried["error"]) == (1, "completed", None)
    assert tried["worker"].startswith("wkr_")


def test_a_job_that_fails_says_why(service: Stack, http: httpx.Client) -> None:
    """In the job, in each of its attempts, and to whoever asks for the answer."""
    service.upstream.script("test-1", Status(503))

    job = ended(http, submit(http, model="test-1", max_attempts=1)["id"])

    assert job["status"] == "failed"
    assert set(job["error"]) >= {"message", "type", "param", "code"}
    assert job["error"]["job_id"] == job["id"]
    [tried] = get(http, f"/v1/jobs/{job['id']}/attempts")["data"]
    assert (tried["outcome"], tried["error"]["code"]) == ("failed", job["error"]["code"])
    shown = get(http, job["links"]["completion"])
    assert (shown["status"], shown["choices"]) == ("failed", [])


def test_a_thousand_jobs_are_accepted_at_once(http: httpx.Client) -> None:
    """In the order of the array."""
    many = [planned(metadata={"n": str(number)}) for number in range(1_000)]

    response = http.post("/v1/jobs", json=many)

    assert response.status_code == 202
    rows = response.json()["data"]
    assert [row["metadata"]["n"] for row in rows] == [str(number) for number in range(1_000)]
    assert len({row["id"] for row in rows}) == 1_000


def test_one_bad_job_refuses_the_whole_array(http: httpx.Client) -> None:
    """Nothing of it is left behind."""
    many = [planned() for _ in range(999)]

    for bad in (planned(temperature=9), planned(model="no-such-model")):
        response = http.post("/v1/jobs", json=[*many, bad])
        assert response.status_code in (400, 404)
        assert response.json()["error"]["param"].startswith("[999].")
    assert listed(http) == []


def test_a_planned_job_waits_for_its_time(http: httpx.Client) -> None:
    """It is `queued`, has no place in the queue, and then runs."""
    soon = clock.now() // 1000 + 2

    job = submit(http, run_at=soon)

    assert (job["status"], job["run_at"], job["queue"]["position"]) == ("queued", soon, None)
    assert job["status_reason"] == "scheduled"
    done = ended(http, job["id"])
    assert done["status"] == "completed"
    assert done["started_at"] >= soon


def test_a_job_that_did_not_start_in_time_expires(http: httpx.Client) -> None:
    """Within a turn of the control loop; it was never tried."""
    job = submit(http, expires_at=clock.now() // 1000 - 1)

    done = ended(http, job["id"])

    assert (done["status"], done["attempt"]) == ("expired", 0)
    assert done["error"]["code"] == "job_expired"
    assert get(http, f"/v1/jobs/{job['id']}/attempts")["data"] == []


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_cursors_walk_every_page_once(http: httpx.Client, order: str) -> None:
    """Whichever of a job's ids is the cursor."""
    rows = http.post("/v1/jobs", json=[planned() for _ in range(23)]).json()["data"]
    made = sorted((row["id"] for row in rows), reverse=order == "desc")
    seen: list[str] = []
    sizes = []
    after: dict[str, str] = {}
    for prefix in ("job_", "chatcmpl-", "batch_req_"):
        page = get(http, "/v1/jobs", order=order, limit=10, **after)
        ids = [row["id"] for row in page["data"]]
        assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        assert page["has_more"] == (len(seen) + len(ids) < 23)
        seen += ids
        sizes.append(len(ids))
        after = {"after": prefix + ids[-1].removeprefix("job_")}

    assert seen == made
    assert sizes == [10, 10, 3]


def test_lists_are_filtered(http: httpx.Client) -> None:
    """By status, model, metadata and time; all that is given must hold."""
    red = submit(http, **planned(metadata={"colour": "red", "size": "1"}))["id"]
    blue = submit(http, **planned(model="test-2", metadata={"colour": "blue"}))["id"]
    done = ended(http, submit(http, metadata={"colour": "red"})["id"])["id"]
    find = partial(listed, http, order="asc")

    assert find() == sorted([red, blue, done])
    assert find(status="completed") == [done]
    assert find(status="queued,failed") == sorted([red, blue])
    assert find(model="test-2") == [blue]
    assert find(**{"metadata[colour]": "red"}) == sorted([red, done])
    assert find(**{"metadata[colour]": "red", "metadata[size]": "1"}) == [red]
    assert find(**{"metadata[colour]": "red", "model": "test-2"}) == []
    assert find(created_after=clock.now() // 1000 + 60) == []
    assert len(find(created_after=clock.now() // 1000 - 600)) == 3
    assert len(find(created_before=clock.now() // 1000 + 60)) == 3
    completion = "chatcmpl-" + done.removeprefix("job_")
    assert find("/v1/chat/completions") == [completion], "the completed ones, unless told"
    assert find("/v1/chat/completions", **{"metadata[colour]": "blue"}) == []


def test_a_job_answers_to_three_names(http: httpx.Client) -> None:
    """On both views."""
    job_id = submit(http, **planned())["id"]
    bare = job_id.removeprefix("job_")

    for prefix in ("job_", "chatcmpl-", "batch_req_", ""):
        assert get(http, f"/v1/jobs/{prefix}{bare}")["id"] == job_id
        assert get(http, f"/v1/chat/completions/{prefix}{bare}")["id"] == f"chatcmpl-{bare}"


@pytest.mark.parametrize("view", ["/v1/jobs/", "/v1/chat/completions/"])
def test_cancel_is_idempotent(http: httpx.Client, view: str) -> None:
    """With the SDK's empty body, as often as one likes; what has ended stays as it ended."""
    waiting = submit(http, **planned())["id"]
    done = ended(http, submit(http)["id"])["id"]

    for job_id, status in ((waiting, "cancelled"), (done, "completed")):
        answers = [
            http.post(f"{view}{job_id}/cancel", headers={"content-type": "application/json"})
            for _ in range(3)
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert {answer.json()["status"] for answer in answers} == {status}
    assert get(http, f"/v1/jobs/{waiting}")["attempt"] == 0


def test_a_running_job_is_cancelled_and_its_upstream_let_go(
    service: Stack, http: httpx.Client
) -> None:
    """It shows `cancelling`, then `cancelled`; what it had said can be read."""
    service.upstream.script("test-3", Say("Once upon"), Stall())
    job_id = submit(http, model="test-3", stream=True)["id"]
    service.upstream.wait_until(
        lambda upstream: [call for call in upstream.calls_of("test-3") if call.deltas >= 2], 20
    )
    eventually(lambda: get(http, f"/v1/jobs/{job_id}")["progress"]["deltas"] or None)

    answer = http.post(f"/v1/jobs/{job_id}/cancel").json()

    assert answer["status"] in ("cancelling", "cancelled")
    assert ended(http, job_id)["status"] == "cancelled"
    service.upstream.wait_until(
        lambda upstream: upstream.calls_of("test-3")[-1].finished == "closed_by_client"
    )
    shown = get(http, f"/v1/chat/completions/{job_id}", partial="true")
    assert shown["choices"][0]["message"]["content"] == "Once upon"


def test_deleting_leaves_nothing(service: Stack, http: httpx.Client) -> None:
    """Whether it has ended, waits, or runs: afterwards there is no such job."""
    service.upstream.script("test-4", Say("Once upon"), Stall())
    done = ended(http, submit(http)["id"])["id"]
    waiting = submit(http, **planned())["id"]
    running = submit(http, model="test-4")["id"]
    service.upstream.wait_until(lambda upstream: upstream.calls_of("test-4"), 20)

    for job_id in (done, waiting, running):
        completion = "chatcmpl-" + job_id.removeprefix("job_")
        answer = http.delete(f"/v1/chat/completions/{completion}")
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "id": completion, "object": "chat.completion.deleted", "deleted": True
        }  # fmt: skip
        assert http.get(f"/v1/jobs/{job_id}").status_code == 404
        assert http.delete(f"/v1/chat/completions/{completion}").status_code == 404
    assert listed(http) == []


def test_what_retention_took_is_gone_for_good(service: Stack, http: httpx.Client) -> None:
    """The job is shown as ever, without what was said; lists of completions leave it out."""
    expired = ended(http, submit(http, metadata={"a": "1"})["id"])
    sessions = Sessions(service.database_url)
    with sessions() as session:
        retention.anonymise(session, -1000 * LATER, 1_000)
    sessions.close()
    kept = ended(http, submit(http)["id"])["id"]
    completion = "/v1/chat/completions/chatcmpl-" + expired["id"].removeprefix("job_")

    assert get(http, f"/v1/jobs/{expired['id']}") == {**expired, "metadata": {}}
    assert len(get(http, f"/v1/jobs/{expired['id']}/attempts")["data"]) == 1
    for path in (
        completion,
        f"{completion}?stream=true",
        f"{completion}/messages",
        f"/v1/jobs/{expired['id']}/events",
    ):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "content_expired")
        assert expired["id"] in answer.json()["error"]["message"]
    assert http.post(completion, json={"metadata": {"b": "2"}}).status_code == 410
    completions = get(http, "/v1/chat/completions")["data"]
    assert [each["job"]["id"] for each in completions] == [kept]
    assert http.delete(completion).status_code == 200
    assert http.get(f"/v1/jobs/{expired['id']}").status_code == 404


def test_metadata_is_replaced_and_found(http: httpx.Client) -> None:
    """Also of a job that has ended."""
    job_id = ended(http, submit(http, metadata={"a": "1", "b": "2"})["id"])["id"]
    completion = "/v1/chat/completions/chatcmpl-" + job_id.removeprefix("job_")

    answer = http.post(completion, json={"metadata": {"b": "3"}})

    assert answer.json()["metadata"] == {"b": "3"}
    assert get(http, completion)["metadata"] == {"b": "3"}
    assert listed(http, **{"metadata[b]": "3"}) == [job_id]
    assert listed(http, **{"metadata[a]": "1"}) == []
    assert http.post(completion, json={"metadata": None}).json()["metadata"] == {}
    assert listed(http, **{"metadata[b]": "3"}) == []
    refused: list[Any] = [{"metadata": {"b": 3}}, {"metadata": []}, {"colour": "red"}]
    for wrong in refused:
        assert http.post(completion, json=wrong).status_code == 400


def test_messages_come_in_pages(http: httpx.Client) -> None:
    """As they were sent, each with an id that is the next page's cursor."""
    sent = [{"role": "user", "content": f"{SAID} {number}"} for number in range(5)]
    job_id = submit(http, **planned(messages=sent))["id"]
    path = f"/v1/chat/completions/{job_id}/messages"

    first = get(http, path, limit=3)
    second = get(http, path, limit=3, after=first["last_id"])

    said = [row["content"] for row in first["data"] + second["data"]]
    assert said == [row["content"] for row in sent]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [row["content"] for row in get(http, path, order="desc")["data"]] == said[::-1]
    assert http.get(path, params={"after": "nope"}).status_code == 400


def test_models_are_listed(http: httpx.Client) -> None:
    """With what a client needs to choose, and whether a worker can serve them."""
    listed_models = get(http, "/v1/models")["data"]

    assert {model["id"] for model in listed_models} >= {"test", "test-1"}
    assert all(model["available"] and model["object"] == "model" for model in listed_models)
    one = get(http, "/v1/models/test")
    assert (one["context_window"], one["max_output_tokens"]) == (8192, 4096)
    missing = http.get("/v1/models/no/such")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_health_and_metrics_need_no_key(service: Stack, http: httpx.Client) -> None:
    """And Prometheus can read the metrics."""
    submit(http, **planned())
    with httpx.Client(base_url=service.url) as anybody:
        assert get(anybody, "/health/live") == {"status": "ok"}
        assert anybody.head("/health/ready").status_code == 200
        ready = get(anybody, "/health/ready")
        metrics = anybody.get("/metrics").text

    assert ready["checks"] == {"database": "ok", "redis": "ok", "workers": "ok"}
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    routes = {sample.labels["route"] for sample in families["sluice_http_requests"].samples}
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/health/live"} <= routes
    assert not [route for route in routes if "chatcmpl-" in route or "job_0" in route]
    assert families["sluice_workers"].samples[0].value == 1
    assert families["sluice_holds_drift"].samples[0].value == 0
    assert families["sluice_holds_oldest_seconds"].samples[0].value >= 0
    assert {row.labels["lane"] for row in families["sluice_jobs_queued"].samples} == set(Lane)
    waiting = {row.labels["status"]: row.value for row in families["sluice_jobs"].samples}
    assert waiting["queued"] >= 1


def test_the_api_describes_itself(service: Stack) -> None:
    """Every route is in the document, with its body, and a page shows it."""
    with httpx.Client(base_url=service.url) as anybody:
        document = get(anybody, "/openapi.json")
        page = anybody.get("/docs")

    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert set(document["paths"]) >= {
        "/v1/chat/completions", "/v1/chat/completions/{completion_id}",
        "/v1/chat/completions/{completion_id}/cancel", "/v1/jobs", "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/events", "/v1/jobs/{job_id}/attempts", "/v1/models", "/health/ready",
    }  # fmt: skip
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert "messages" in body["content"]["application/json"]["schema"]["properties"]
    assert "HTTPValidationError" not in json.dumps(document), "422 is not how we refuse"


def test_another_accounts_job_does_not_exist(service: Stack, http: httpx.Client) -> None:
    """404 on every route, to the letter the answer for a job that never was."""
    job_id = submit(http, **planned())["id"]
    bare = job_id.removeprefix("job_")
    routes = [
        ("GET", "/v1/jobs/{}"),
        ("POST", "/v1/jobs/{}/cancel"),
        ("GET", "/v1/jobs/{}/attempts"),
        ("GET", "/v1/jobs/{}/events"),
        ("GET", "/v1/chat/completions/{}"),
        ("GET", "/v1/chat/completions/{}?stream=true"),
        ("POST", "/v1/chat/completions/{}"),
        ("POST", "/v1/chat/completions/{}/cancel"),
        ("GET", "/v1/chat/completions/{}/messages"),
        ("DELETE", "/v1/chat/completions/{}"),
    ]
    with service.http(service.mint("nosy")) as nosy:
        for method, route in routes:
            answers = []
            for asked in (bare, "0" * 26):
                labels: Any = {"metadata": {}} if (method, route[-2:]) == ("POST", "{}") else None
                answer = nosy.request(method, route.format(asked), json=labels)
                assert answer.status_code == 404, (method, route)
                answers.append(answer.text.replace(asked, "X"))
            assert answers[0] == answers[1]
        assert listed(nosy) == []
        assert nosy.get("/v1/jobs", params={"after": job_id}).status_code == 400

    assert get(http, f"/v1/jobs/{job_id}")["status"] == "queued"


def test_a_key_works_in_both_headers_until_it_ends(service: Stack) -> None:
    """Then it is 401, as is no key, a wrong one, or another scheme."""
    with rows(service) as session:
        key, text = keys.create(session, account="ending")
        _, expired = keys.create(session, account="ending", expires_at=clock.now() - 1)

    def status(**headers: str) -> int:
        with httpx.Client(base_url=service.url) as client:
            return client.get("/v1/jobs", headers=headers).status_code

    assert status(authorization=f"Bearer {text}") == 200
    assert status(authorization=f"bearer {text}") == 200
    assert status(**{"x-api-key": text}) == 200
    for wrong in ("", "Bearer", f"Bearer {expired}", f"Basic {text}", f"Bearer {text}0", text):
        assert status(authorization=wrong) == 401, wrong
    assert status() == 401
    with rows(service) as session:
        keys.revoke(session, key.id)
    assert status(authorization=f"Bearer {text}") == 401
    assert status(**{"x-api-key": text}) == 401


def test_every_answer_and_its_log_line_have_one_id(service: Stack, http: httpx.Client) -> None:
    """Ours, never the caller's; the worker's lines about the job carry it too."""
    answers = [
        http.get("/v1/jobs", headers={"x-request-id": "req_mine"}),
        http.get("/v1/nothing"),
        http.post("/v1/jobs", content=b"{"),
        http.post("/v1/jobs", json=ASKED),
    ]
    numbers = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(numbers)) == 4
    assert "req_mine" not in numbers

    def lines() -> list[dict[str, Any]] | None:
        found = [row for row in log_lines(service, "api") if row.get("request_id") in numbers]
        return found if len(found) >= 4 else None

    by_id = {row["request_id"]: row for row in eventually(lines) if row["event"] == "request"}
    assert [by_id[number]["status"] for number in numbers] == [200, 404, 415, 202]


def test_no_log_tells_what_was_asked_or_by_which_key(service: Stack, http: httpx.Client) -> None:
    """Neither prompts nor answers nor secrets, also when things go wrong."""
    service.upstream.script("test-5", Say(f"{SAID} {SAID}"))
    service.upstream.script("test-6", Status(400, {"error": {"message": f"bad {SAID}"}}))
    for model in ("test-5", "test-6"):
        ended(http, submit(http, model=model, metadata={"k": SAID})["id"])
    http.post("/v1/jobs", json={**ASKED, "temperature": SAID})
    http.get("/v1/jobs", headers={"authorization": f"Bearer {service.key}x"})
    secret = service.key.rpartition("_")[2]
    own = http.headers["authorization"].rpartition("_")[2]

    for log in service.home.glob("*.log"):
        text = log.read_text()
        assert text
        for word in (SAID, secret, own):
            assert word not in text, log.name


def test_jobs_without_a_hint_are_swept_up(service: Stack, http: httpx.Client) -> None:
    """Committed by a process that died before it could send any."""
    known = submit(http, **planned())["id"]
    body = json.dumps({"messages": ASKED["messages"]}).encode()

    with rows(service) as session:
        account_id = session.get_one(Job, known.removeprefix("job_")).account_id
        lost = Submission(
            account_id=account_id, request_id="req_lost", model="test", body=body, hinted=False
        )
        jobs.submit(session, lost)

    assert ended(http, lost.job_id)["status"] == "completed"


def test_a_held_poll_returns_when_the_job_ends(service: Stack, http: httpx.Client) -> None:
    """`Prefer: wait` holds no longer than it must."""
    service.upstream.script("test-7", Say("one two three four", every=0.1))
    job_id = submit(http, model="test-7")["id"]

    answer = http.get(f"/v1/chat/completions/{job_id}", headers={"prefer": "wait=30"})

    assert answer.json()["status"] == "completed"
    assert answer.elapsed < timedelta(seconds=20)
