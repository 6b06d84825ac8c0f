"""OpenAI's batches through its own SDKs, and what is ours: results and events while they run."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from sqlmodel import Session, col, select

from shared import db, keys
from shared.tables import File
from tests.bulk import ENDPOINT, Object, ended, jsonl, line, parsed, shown, submitted, uploaded
from tests.fakes.upstream import Say, Status, WaitFor
from tests.sdks import SDKS, Application
from tests.stack import Stack, eventually
from tests.valkey import free_port

LINES = int(os.environ.get("SLUICE_TEST_LINES", "10"))
"""Of the batches that the SDKs run; try 50,000."""
MATRIX = [*(("sqlite", sdk) for sdk in SDKS), ("postgresql", SDKS[-1])]
WITHIN = 60.0 + LINES / 20
JSONL = {"content-type": "application/x-ndjson"}
MOMENTS = ("completed_at", "failed_at", "expired_at", "cancelled_at")

sqlite = pytest.mark.parametrize("service", ["sqlite"], indirect=True, scope="module")


def kept(service: Stack) -> set[str]:
    """Every file that came from outside, by its row or by its bytes."""
    engine = db.connect(service.database_url)
    with Session(engine) as session:
        rows = set(session.exec(select(File.id).where(col(File.batch_id).is_(None))))
    engine.dispose()
    return rows | {path.name for path in (service.home / "files").glob("*")}


def fresh(service: Stack, name: str) -> httpx.Client:
    """A plain client of an account that has no batches yet."""
    return service.http(service.mint(name))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a scripted model waits for; it opens at the end of the test."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.mark.parametrize("service, sdk", MATRIX, indirect=["service"], scope="module")
def test_every_sdk_runs_a_batch(service: Stack, sdk: str) -> None:
    """It uploads, submits, polls, reads the output, lists and cancels, whatever its version."""
    service.upstream.script("test", Say("Hello there"))
    key = service.mint(f"batch {sdk}")
    content = jsonl(*map(line, range(LINES))).decode()
    metadata = {"team": "blue"}
    with Application(sdk) as application:
        there = {"base_url": f"{service.url}/v1", "key": key}
        application.ask("batch", **there, content=content, metadata=metadata)
        seen = application.answer()

    assert "raised" not in seen, seen
    created, batch = seen["created"], seen["batch"]
    assert (created["object"], created["status"]) == ("batch", "validating")
    assert (created["metadata"], created["output_file_id"]) == (metadata, None)
    assert created["expires_at"] == created["created_at"] + 24 * 3600
    assert (batch["id"], batch["status"]) == (created["id"], "completed")
    assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert [name for name in MOMENTS if batch[name] is not None] == ["completed_at"]
    assert (batch["errors"], batch["error_file_id"]) == (None, None)
    assert batch["usage"]["total_tokens"] > 0
    lines = parsed(seen["output"])
    assert {each["custom_id"] for each in lines} == {f"line-{number}" for number in range(LINES)}
    assert len(lines) == LINES
    for each in lines:
        assert (each["id"][:10], each["error"]) == ("batch_req_", None)
        response = each["response"]
        assert response["status_code"] == 200
        assert response["body"]["choices"][0]["message"]["content"] == "Hello there"
    assert seen["cancelled"]["status"] in ("cancelling", "cancelled")
    assert seen["ids"] == [seen["cancelled"]["id"], batch["id"]]


@sqlite
@pytest.mark.parametrize("form", ["requests", "lines"])
def test_a_batch_needs_no_file(service: Stack, form: str) -> None:
    """Requests in the body, or a body of lines; what they have in common is said once."""
    service.upstream.script("test", Say("Hello"))
    http = fresh(service, form)
    if form == "requests":
        asked = [{"custom_id": f"line-{n}", "body": line(n)["body"]} for n in range(3)]
        asked[0]["body"].pop("model")
        terms: Object = {"completion_window": "90m", "priority": 3, "concurrency": 2}
        batch = submitted(http, *asked, model="test", metadata={"a": "b"}, **terms)
    else:
        path = "/v1/batches?completion_window=90m&priority=3&concurrency=2"
        batch = http.post(path, content=jsonl(*map(line, range(3))), headers=JSONL).json()

    assert batch["expires_at"] == batch["created_at"] + 90 * 60
    assert (batch["priority"], batch["concurrency"]) == (3, 2)
    done = ended(http, batch)
    assert done["counts"] == {
        "total": 3, "completed": 3, "queued": 0, "running": 0, "failed": 0, "cancelled": 0,
        "expired": 0,
    }  # fmt: skip
    found = http.get(f"/v1/batches/{batch['id']}/results")
    assert {each["custom_id"] for each in parsed(found.text)} == {"line-0", "line-1", "line-2"}
    jobs = http.get("/v1/jobs", params={"batch_id": batch["id"]}).json()["data"]
    assert {job["custom_id"] for job in jobs} == {"line-0", "line-1", "line-2"}
    assert {(job["batch_id"], job["lane"]) for job in jobs} == {(batch["id"], "batch")}
    inline = http.get(f"/v1/files/{batch['input_file_id']}/content")
    assert [each["body"]["model"] for each in parsed(inline.text)] == ["test"] * 3


@sqlite
@pytest.mark.parametrize("form", ["requests", "lines"])
def test_wrong_lines_are_refused_all_at_once(service: Stack, form: str) -> None:
    """The message names the first, the error lists them; nothing is left behind."""
    http, before = fresh(service, f"wrong {form}"), kept(service)
    lines = [line(1), line(1), line(2, model="unknown"), line(3, stream=True)]
    if form == "requests":
        answer = http.post("/v1/batches", json={"requests": lines})
    else:
        answer = http.post("/v1/batches", content=jsonl(*lines), headers=JSONL)

    error = answer.json()["error"]
    said = "Line 2: The 'custom_id' 'line-1' is in an earlier line already. (3 problems in all.)"
    param = "requests[1].custom_id" if form == "requests" else "custom_id"
    assert (answer.status_code, error["message"], error["param"]) == (400, said, param)
    assert [(each["line"], each["code"], each["param"]) for each in error["errors"]] == [
        (2, "duplicate_custom_id", "custom_id"),
        (3, "model_not_found", "body.model"),
        (4, "invalid_request", "body.stream"),
    ]
    assert http.get("/v1/batches").json()["data"] == []
    assert kept(service) == before


@sqlite
def test_a_wrong_file_makes_a_batch_that_failed(service: Stack) -> None:
    """As OpenAI has it, with every problem and its line."""
    client = service.client(service.mint("wrong file"))
    file_id = uploaded(client, jsonl(line(1), line(1)) + b"nonsense")
    batch = client.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h")

    assert (batch.status, batch.failed_at is not None) == ("failed", True)
    assert batch.errors is not None
    assert [(each.line, each.code) for each in batch.errors.data or ()] == [
        (2, "duplicate_custom_id"), (3, "invalid_json_line"),
    ]  # fmt: skip


@sqlite
@pytest.mark.parametrize(
    "body, status, param",
    [
        ({}, 400, "input_file_id"),
        ({"input_file_id": "file-" + "0" * 26, "endpoint": ENDPOINT}, 404, "input_file_id"),
        ({"requests": [line(1)], "webhook": {"url": "http://10.0.0.1/"}}, 400, "webhook.url"),
    ],
)
def test_a_wrong_request_names_its_field(
    service: Stack, body: Object, status: int, param: str
) -> None:
    """And makes nothing."""
    before = kept(service)
    answer = service.http().post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert kept(service) == before


@sqlite
@pytest.mark.parametrize(
    "method, path, param",
    [
        ("GET", "/v1/batches?status=done", "status"),
        ("GET", "/v1/batches?limit=101", "limit"),
        ("GET", "/v1/batches?after=x", "after"),
        ("GET", "/v1/batches/{id}/results?after=-1", "after"),
        ("GET", "/v1/batches/{id}/results?limit=0", "limit"),
        ("GET", "/v1/batches/{id}/results?status=done", "status"),
        ("POST", "/v1/batches/{id}/cancel?grace=3601", "grace"),
        ("PATCH", "/v1/batches/{id}", "priority"),
    ],
)
def test_a_wrong_query_is_refused(service: Stack, method: str, path: str, param: str) -> None:
    """With the name of what is wrong."""
    body = {"priority": "high"} if method == "PATCH" else None
    answer = service.http().request(method, path.format(id="batch_" + "0" * 26), json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@sqlite
def test_other_accounts_know_nothing_of_a_batch(service: Stack) -> None:
    """Whatever they ask of it."""
    batch = submitted(fresh(service, "owner"), line(1))
    stranger, path = fresh(service, "stranger"), f"/v1/batches/{batch['id']}"

    answers = [stranger.get(path + end) for end in ("", "/results", "/events")]
    answers += [stranger.get(f"{path}/results?follow=true"), stranger.patch(path, json={})]
    answers += [stranger.post(f"{path}/{verb}") for verb in ("cancel", "pause", "resume", "retry")]
    assert {answer.status_code for answer in answers} == {404}
    assert stranger.get("/v1/batches").json()["data"] == []


@sqlite
def test_a_key_cannot_run_a_file_of_models_it_may_not_ask_for(service: Stack) -> None:
    """Though the account may, and has uploaded it."""
    file_id = uploaded(service.client(), jsonl(line(1)))
    engine = db.connect(service.database_url)
    with Session(engine) as session, session.begin():
        _, narrow = keys.create(session, account="ours", models=["test-1"])
    engine.dispose()
    asked = {"input_file_id": file_id, "endpoint": ENDPOINT}
    answer = service.http(narrow).post("/v1/batches", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")


@sqlite
def test_a_dry_run_counts_and_makes_nothing(service: Stack) -> None:
    """What it would be, of a file and of what comes with the request."""
    http = fresh(service, "dry")
    lines = [line(number, max_tokens=50) for number in range(3)]
    ended(http, submitted(http, *lines))  # from now on the lane has a speed
    before, made = kept(service), http.get("/v1/batches").json()["data"]

    def dry(path: str = "/v1/batches", **asked: Any) -> dict[str, Any]:
        found: dict[str, Any] = http.post(path, **asked).json()
        eta = found.pop("eta_seconds")
        assert eta is None if found["errors"] else 0 < eta["p50"] < eta["p90"]
        return found

    inline = dry(json={"requests": lines, "dry_run": True})
    assert (inline["object"], inline["request_counts"]) == ("batch.dry_run", {"total": 3})
    assert (inline["errors"], inline["cost"]) == (None, {"most": 0.0})
    assert inline["tokens"]["most_completion"] == 150
    assert inline["tokens"]["prompt"] > 0
    path = "/v1/batches?dry_run=true"
    assert dry(path, content=jsonl(*lines), headers=JSONL) == inline
    assert kept(service) == before

    client = service.client(http.headers["authorization"].removeprefix("Bearer "))
    for content in (jsonl(*lines), b"nonsense"):
        asked = {"input_file_id": uploaded(client, content), "endpoint": ENDPOINT}
        seen = dry(json={**asked, "dry_run": True})
        if content == b"nonsense":
            assert seen["errors"]["data"][0]["code"] == "invalid_json_line"
        else:
            assert seen == inline
    assert http.get("/v1/batches").json()["data"] == made


@sqlite
@pytest.mark.parametrize(
    "first, second",
    [
        ({"idempotency-key": "mine"}, {"idempotency-key": "mine"}),
        ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}),
    ],
)
@pytest.mark.parametrize("form", ["requests", "lines"])
def test_a_request_that_comes_again_leads_to_the_same_batch(
    service: Stack, form: str, first: dict[str, str], second: dict[str, str]
) -> None:
    """By the caller's key, or by the way SDKs repeat themselves; its input is kept once."""
    http = fresh(service, f"again {form} {'-'.join(first)}")
    send: Object = {"json": {"requests": [line(1)]}}
    if form == "lines":
        send = {"content": jsonl(line(1))}
        first, second = {**first, **JSONL}, {**second, **JSONL}
    made = http.post("/v1/batches", headers=first, **send)
    before = kept(service)
    again = http.post("/v1/batches", headers=second, **send)

    assert again.json()["id"] == made.json()["id"]
    assert "idempotency-replayed" not in made.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert kept(service) == before
    assert len(http.get("/v1/batches").json()["data"]) == 1


@sqlite
def test_a_key_that_came_with_other_lines_is_422(service: Stack) -> None:
    """And those leave nothing behind."""
    http, mine = fresh(service, "reused"), {"idempotency-key": "mine"}
    http.post("/v1/batches", headers=mine, json={"requests": [line(1)]})
    before = kept(service)
    answer = http.post("/v1/batches", headers=mine, json={"requests": [line(2)]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert kept(service) == before


@sqlite
def test_a_full_queue_takes_no_batch(service: Stack) -> None:
    """503, and what came with the request is gone; what failed is not tried anew either.

    A request that came before finds its batch.
    """
    http = fresh(service, "full")
    service.upstream.script("test-19", Status(400))
    lines = [line(number, "test-19") for number in range(3)]
    failed = ended(http, submitted(http, *lines))
    mine = {**http.headers, "idempotency-key": "mine"}
    there = http.post("/v1/batches", json={"requests": lines}, headers=mine).json()
    before, port = kept(service), free_port()
    api = service.api(port, SLUICE_QUEUE_LIMIT="2")
    path = f"http://127.0.0.1:{port}/v1/batches"
    answers = [
        httpx.post(path, json={"requests": lines}, headers=http.headers),
        httpx.post(f"{path}/{failed['id']}/retry", headers=http.headers),
    ]
    again = httpx.post(path, json={"requests": lines}, headers=mine)
    api.stop()
    assert (again.status_code, again.json().get("id")) == (200, there["id"])
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
    assert kept(service) == before
    assert shown(http, failed)["status"] == "completed"
    assert http.post(f"/v1/batches/{failed['id']}/retry").status_code == 200


@sqlite
def test_results_come_while_others_run(service: Stack, gate: threading.Event) -> None:
    """Page by page after a cursor, or as a stream that goes on until the batch has ended."""
    http = fresh(service, "results")
    service.upstream.script("test-1", Say("Quick"))
    service.upstream.script("test-2", WaitFor(gate), Say("Slow"))
    batch = submitted(http, line(1, "test-1"), line(2, "test-2"), line(3, "test-1"))
    path = f"/v1/batches/{batch['id']}/results"
    eventually(lambda: shown(http, batch)["last_result"] == 2, WITHIN)

    page = http.get(path, params={"limit": 1})
    assert len(parsed(page.text)) == 1
    assert (page.headers["x-next-cursor"], page.headers["x-incomplete"]) == ("1", "true")
    rest = http.get(path, params={"after": 1})
    assert len(parsed(rest.text)) == 1
    assert (rest.headers["x-next-cursor"], rest.headers["x-incomplete"]) == ("2", "true")
    quick = {each["custom_id"] for each in parsed(page.text + rest.text)}
    assert quick == {"line-1", "line-3"}
    none = http.get(path, params={"status": "failed"})
    assert (none.text, none.headers["x-next-cursor"]) == ("", "2")

    seen = []
    with http.stream("GET", path, params={"follow": "true"}) as following:
        assert following.headers["content-type"] == "application/x-ndjson"
        assert following.headers["x-incomplete"] == "true"
        for text in filter(None, following.iter_lines()):
            seen.append(json.loads(text)["custom_id"])
            if len(seen) == 2:
                gate.set()
    assert (set(seen[:2]), seen[2:]) == (quick, ["line-2"])
    ended(http, batch)
    last = http.get(path, params={"after": 3, "follow": "true"})
    assert (last.text, last.headers["x-incomplete"]) == ("", "false")


@sqlite
def test_a_follower_is_kept_awake_and_let_go(service: Stack, gate: threading.Event) -> None:
    """By blank lines while nothing ends; when its server stops it goes on at another."""
    service.upstream.script("test-8", WaitFor(gate), Say("Slow"))
    batch = submitted(service.http(), line(1, "test-8"))
    port = free_port()
    api = service.api(port, SLUICE_HEARTBEAT="0.2")
    ours = {"authorization": f"Bearer {service.key}"}
    path = f"/v1/batches/{batch['id']}"
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=ours, timeout=60) as http:
        following = http.stream("GET", f"{path}/results?follow=true")
        telling = http.stream("GET", f"{path}/events")
        with following as results, telling as events:
            pieces, told = results.iter_raw(), events.iter_raw()
            assert next(pieces) == b"\n"
            assert b"batch.progress" in next(told)
            api.send(signal.SIGTERM)
            assert b"".join(pieces).strip() == b""
            assert b"batch.completed" not in b"".join(told)
    assert api.wait() == 0
    gate.set()
    rest = service.http().get(f"{path}/results?follow=true")
    assert [each["custom_id"] for each in parsed(rest.text)] == ["line-1"]


@sqlite
def test_a_line_cannot_be_deleted_by_itself(service: Stack, gate: threading.Event) -> None:
    """It goes on as if nothing had been said."""
    http = fresh(service, "line")
    service.upstream.script("test-9", WaitFor(gate), Say("Slow"))
    batch = submitted(http, line(1, "test-9"))
    eventually(lambda: shown(http, batch)["counts"]["running"], WITHIN)
    [job] = http.get("/v1/jobs", params={"batch_id": batch["id"]}).json()["data"]
    where = f"/v1/chat/completions/{job['id'].replace('job_', 'batch_req_')}"
    answer = http.delete(where)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "job_in_batch")
    gate.set()
    assert ended(http, batch)["counts"]["completed"] == 1


@sqlite
def test_events_tell_how_it_comes_along(service: Stack, gate: threading.Event) -> None:
    """What changes, to several readers, and at last the batch itself; then there is no more."""
    http = fresh(service, "events")
    service.upstream.script("test-3", WaitFor(gate), Say("Slow"))
    batch = submitted(http, line(1, "test-3"), line(2, "test-3"))
    path = f"/v1/batches/{batch['id']}/events"
    with http.stream("GET", path) as one, http.stream("GET", path) as other:
        streams = [_events(one), _events(other)]
        for events in streams:
            name, _, data = next(events)
            assert (name, data["counts"]["total"]) == ("batch.progress", 2)
        gate.set()
        told = [list(events) for events in streams]
    for events_of in told:
        name, number, data = events_of[-1]
        assert (name, data["batch"]["status"]) == ("batch.completed", "completed")
        assert {each[0] for each in events_of[:-1]} <= {"batch.progress"}
        assert all(before[2] != after[2] for before, after in pairwise(events_of))
    known = {"last-event-id": number or ""}
    assert http.get(path, headers=known).status_code == 204
    [(name, _, data)] = _events_of(http.get(path).text)
    assert (name, data["batch"]["output_file_id"] is not None) == ("batch.completed", True)


def _events(answer: httpx.Response) -> Iterator[tuple[str, str | None, Any]]:
    """The events of a stream: name, number, data."""
    event: dict[str, str] = {}
    for text in answer.iter_lines():
        if text:
            name, _, value = text.partition(": ")
            event[name] = value
        elif "data" in event:
            yield event["event"], event.get("id"), json.loads(event["data"])
            event = {}


def _events_of(text: str) -> list[tuple[str, str | None, Any]]:
    return list(_events(httpx.Response(200, text=text)))


@sqlite
def test_failures_have_a_file_of_their_own_and_can_be_tried_anew(service: Stack) -> None:
    """The batch completes all the same, says what went wrong, and retries only that."""
    http = fresh(service, "failures")
    service.upstream.script("test-4", Say("Fine"))
    service.upstream.script("test-5", Status(400, {"error": {"message": "No such thing."}}))
    batch = ended(http, submitted(http, line(1, "test-4"), line(2, "test-5")))

    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert [each["count"] for each in batch["error_summary"]] == [1]
    errors = http.get(f"/v1/files/{batch['error_file_id']}/content")
    [failed] = parsed(errors.text)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("line-2", 400)
    assert "error" in failed["response"]["body"]
    only = http.get(f"/v1/batches/{batch['id']}/results", params={"status": "failed"})
    assert only.text == errors.text
    outputs = {each["id"] for each in http.get("/v1/files?purpose=batch_output").json()["data"]}
    assert outputs == {batch["output_file_id"], batch["error_file_id"]}

    service.upstream.script("test-5", Say("Now it is"))
    again = http.post(f"/v1/batches/{batch['id']}/retry").json()
    assert (again["status"], again["output_file_id"]) == ("in_progress", None)
    done = ended(http, batch)
    assert done["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert done["error_file_id"] is None
    output = http.get(f"/v1/files/{done['output_file_id']}/content")
    assert {each["custom_id"] for each in parsed(output.text)} == {"line-1", "line-2"}
    assert http.get(f"/v1/files/{batch['error_file_id']}").status_code == 404


@sqlite
def test_a_part_of_an_output_can_be_read(service: Stack) -> None:
    """It is made from rows, of any length; its size is known before."""
    service.upstream.script("test", Say("Hello"))
    http = fresh(service, "ranges")
    batch = ended(http, submitted(http, *map(line, range(205))))
    where = f"/v1/files/{batch['output_file_id']}"
    whole = http.get(f"{where}/content").content
    size = http.get(where).json()["bytes"]
    assert len(whole) == size

    for first, last in ((0, 0), (5, size - 1), (size // 2, size // 2 + 40_000), (size - 9, size)):
        part = http.get(f"{where}/content", headers={"range": f"bytes={first}-{last}"})
        assert part.status_code == 206
        assert part.content == whole[first : last + 1]
    assert http.delete(where).json()["deleted"] is True
    assert http.get(f"{where}/content").status_code == 404
    assert len(parsed(http.get(f"/v1/batches/{batch['id']}/results").text)) == 205


@sqlite
def test_a_batch_can_be_paused_changed_and_cancelled(service: Stack, gate: threading.Event) -> None:
    """What it has not begun it does not begin; what it has done stays."""
    http = fresh(service, "steered")
    service.upstream.script("test-6", Say("Quick"))
    service.upstream.script("test-7", WaitFor(gate), Say("Slow"))
    batch = submitted(http, line(1, "test-6"), line(2, "test-7"))
    path = f"/v1/batches/{batch['id']}"
    eventually(lambda: shown(http, batch)["last_result"] == 1, WITHIN)

    paused = http.post(f"{path}/pause").json()
    assert (paused["status_reason"], paused["paused_at"] is not None) == ("paused", True)
    assert http.post(f"{path}/resume").json()["paused_at"] is None
    terms: Object = {"priority": 9, "concurrency": 1, "metadata": {"team": "red"}}
    changed = http.patch(path, json=terms).json()
    assert {name: changed[name] for name in terms} == terms
    listed = http.get("/v1/batches", params={"metadata[team]": "red"}).json()["data"]
    assert [each["id"] for each in listed] == [batch["id"]]

    assert http.post(f"{path}/cancel").json()["status"] in ("cancelling", "cancelled")
    done = ended(http, batch, "cancelled")
    assert [name for name in MOMENTS if done[name] is not None] == ["cancelled_at"]
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert http.post(f"{path}/cancel").json()["status"] == "cancelled"
    [output] = parsed(http.get(f"/v1/files/{done['output_file_id']}/content").text)
    [error] = parsed(http.get(f"/v1/files/{done['error_file_id']}/content").text)
    assert (output["custom_id"], error["custom_id"]) == ("line-1", "line-2")
    assert error["error"]["code"] == "batch_cancelled"
    refused = http.post(f"{path}/pause")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "batch_ended")
