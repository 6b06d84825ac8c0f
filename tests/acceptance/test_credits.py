"""Jobs that cost credits: held, charged, released, refused, through real processes."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import Session

from shared import accounts, db, ledger
from shared.audit import examine
from shared.prices import NANO
from shared.tables import Account
from tests.conftest import DATABASES, migrated, parts
from tests.fakes.upstream import Bytes, Finish, Say, Stall, Status, Usage, WaitFor
from tests.stack import Stack, eventually

PATH = "/v1/chat/completions"
PRICED = """
[models.priced]
upstream = "fake"
context_window = 8192
max_output_tokens = 1000
input_price = 1000.0
output_price = 2000.0
"""
REQUEST: dict[str, Any] = {"model": "priced", "messages": [{"role": "user", "content": "Talk"}]}
MOST = 2.1
"""Credits: 1,000 tokens of output at 2,000 a million, and the input."""


@pytest.fixture(scope="module", params=DATABASES)
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A running service with one model that costs something."""
    home: Path = tmp_path_factory.mktemp("service")
    with migrated(request, home) as url, parts(home, url) as opened:
        opened.catalogue(PRICED)
        yield opened.up()


@pytest.fixture
def engine(service: Stack) -> Iterator[Any]:
    """The service's database; in the end its books are in order."""
    engine = db.connect(service.database_url)
    yield engine
    assert not examine(engine).broken
    engine.dispose()


def funded(service: Stack, engine: Any, name: str, credits: float) -> httpx.Client:
    """A client of a new account with so many credits."""
    key = service.mint(name)
    with Session(engine) as session, session.begin():
        nano = round(credits * NANO)
        ledger.grant(session, accounts.ensure(session, name).id, nano, note="test")
    return service.http(key)


def books(engine: Any, name: str) -> tuple[Any, float]:
    """What an account can spend, and what is set aside."""
    with Session(engine) as session:
        account = accounts.ensure(session, name)
        assert isinstance(account, Account)
        return account.credits / NANO, account.held / NANO


def test_an_answer_costs_what_it_used(service: Stack, engine: Any) -> None:
    """By the upstream's own count, however the answer is fetched."""
    http = funded(service, engine, "exact", 100)
    service.upstream.script("priced", Say("one two"), Usage(100, 50))

    held = http.post(PATH, json=REQUEST)
    told = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = http.post(PATH, json={**REQUEST, **told})

    assert held.json()["usage"]["cost"] == pytest.approx(0.2)
    assert streamed.text.count('"cost":0.2') == 1
    assert held.headers["x-credits-cost"] == "0.2"
    assert held.headers["x-credits-remaining"] == "99.8"
    for job_id in (held.headers["x-job-id"], streamed.headers["x-job-id"]):
        job = http.get(f"/v1/jobs/{job_id}").json()
        assert job["cost"] == {"credits": 0.2, "estimated": False}
    assert books(engine, "exact") == (pytest.approx(99.6), 0)


def test_an_answer_that_nobody_counted_is_estimated(service: Stack, engine: Any) -> None:
    """And marked so, in the job; the estimate stays within what was held."""
    http = funded(service, engine, "uncounted", 10)
    service.upstream.script("priced", Say("one two"), Finish("stop"), Bytes(b"data: [DONE]\n\n"))

    answer = http.post(PATH, json=REQUEST)

    job = http.get(f"/v1/jobs/{answer.headers['x-job-id']}").json()
    assert job["cost"]["estimated"] is True
    assert 0 < job["cost"]["credits"] == answer.json()["usage"]["cost"] < MOST
    assert books(engine, "uncounted") == (pytest.approx(10 - job["cost"]["credits"]), 0)


def test_what_a_filter_kept_back_costs_nothing(service: Stack, engine: Any) -> None:
    """The prompt was read, and not a word was said; half an answer costs what it used."""
    http = funded(service, engine, "filtered", 10)
    for words, used in (("", 0), ("one two", 20)):
        steps = (Say(words),) if words else ()
        service.upstream.script("priced", *steps, Usage(100, used), Finish("content_filter"))
        answer = http.post(PATH, json=REQUEST).json()
        assert answer["usage"]["completion_tokens"] == used
        assert (answer["usage"]["cost"] > 0) is (used > 0)

    assert books(engine, "filtered") == (pytest.approx(10 - answer["usage"]["cost"]), 0)


def test_a_failure_costs_nothing(service: Stack, engine: Any) -> None:
    """The upstream's fault is not the caller's bill."""
    http = funded(service, engine, "failed", 10)
    service.upstream.script("priced", Status(400))

    assert http.post(PATH, json=REQUEST).status_code == 400
    assert books(engine, "failed") == (10, 0)


def test_a_cancelled_answer_costs_what_was_said(service: Stack, engine: Any) -> None:
    """Estimated, and marked so: the upstream had no time to count."""
    http = funded(service, engine, "cancelled", 10)
    service.upstream.script("priced", Say("one two three four"), Stall())
    job_id = http.post(PATH, json={**REQUEST, "background": True}).headers["x-job-id"]
    eventually(lambda: http.get(f"/v1/jobs/{job_id}").json()["progress"]["deltas"] > 3)

    http.post(f"/v1/jobs/{job_id}/cancel")
    job = eventually(lambda: ended(http, job_id))

    assert job["status"] == "cancelled"
    assert job["cost"]["estimated"] is True
    assert 0 < job["cost"]["credits"] < 0.1
    left, held = books(engine, "cancelled")
    assert (left, held) == (pytest.approx(10 - job["cost"]["credits"]), 0)


def ended(http: httpx.Client, job_id: str) -> dict[str, Any] | None:
    """A job, once it has ended."""
    job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
    return job if job["completed_at"] else None


def test_who_cannot_pay_is_told_what_is_missing(service: Stack, engine: Any) -> None:
    """402, which SDKs do not repeat, with numbers that a program can read; nothing was queued."""
    http = funded(service, engine, "poor", 1)

    refused = http.post(PATH, json={**REQUEST, "max_tokens": 1000})

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (402, "insufficient_credits")
    assert (error["available"], error["held"]) == (1, 0)
    assert 2 < error["required"] < MOST
    assert 450 < error["max_affordable_tokens"] < 500
    assert http.get("/v1/jobs").json()["data"] == []


def test_an_answer_is_as_long_as_can_be_paid_for(service: Stack, engine: Any) -> None:
    """Unless the request says how long it may be, or next to nothing is left."""
    http = funded(service, engine, "modest", 1)
    service.upstream.script("priced", Say("Hi"), Usage(100, 50))

    assert http.post(PATH, json=REQUEST).status_code == 200
    assert 450 < service.upstream.calls[-1].body["max_completion_tokens"] < 500
    last = funded(service, engine, "broke", 0.3).post(PATH, json=REQUEST)
    assert (last.status_code, last.json()["error"]["code"]) == (402, "insufficient_credits")
    assert last.json()["error"]["max_affordable_tokens"] < 256


def test_exactly_what_can_be_paid_runs(service: Stack, engine: Any) -> None:
    """Two hundred at once with room for ten, none of which ends before all have asked."""
    asked = {**REQUEST, "background": True, "max_tokens": 1000}
    needed = funded(service, engine, "probe", 1).post(PATH, json=asked).json()["error"]["required"]
    http = funded(service, engine, "crowd", 10 * needed + 1)
    answered = threading.Event()
    service.upstream.script("priced", WaitFor(answered), Say("Hi"), Usage(100, 50))

    def submit(_: int) -> int:
        return http.post(PATH, json=asked).status_code

    with ThreadPoolExecutor(20) as threads:
        codes = list(threads.map(submit, range(200)))
    answered.set()

    assert Counter(codes) == {202: 10, 402: 190}
    eventually(lambda: books(engine, "crowd")[1] == 0, 30)
    done = http.get("/v1/jobs?status=completed&limit=100").json()["data"]
    assert len(done) == 10
    assert books(engine, "crowd")[0] == pytest.approx(10 * needed + 1 - 0.2 * 10)


def test_an_account_sees_where_its_credits_went(service: Stack, engine: Any) -> None:
    """The balance at both addresses, every movement, and sums by day, model and key."""
    http = funded(service, engine, "books", 10)
    service.upstream.script("priced", Say("one two"), Usage(100, 50))
    job_id = http.post(PATH, json=REQUEST).headers["x-job-id"]

    balances = [
        http.get(path).json() for path in ("/v1/credits/balance", "/api/v1/public/credits/balance")
    ]
    entries = http.get("/v1/credits/ledger", params={"limit": 3}).json()
    grant = http.get("/v1/credits/ledger", params={"after": entries["last_id"]}).json()
    [used] = http.get("/v1/usage", params={"group_by": "day,model"}).json()["data"]

    assert balances[0] == balances[1]
    assert balances[0]["remaining_credits"] == pytest.approx(9.8)
    assert balances[0]["held_credits"] == 0
    assert {entry["kind"]: entry["job_id"] for entry in entries["data"]} == {
        "hold": job_id,
        "release": job_id,
        "charge": job_id,
    }
    assert entries["has_more"] is True
    assert [(entry["kind"], entry["credits"]) for entry in grant["data"]] == [("grant", 10)]
    assert used["day"] % 86_400 == 0
    assert (used["model"], used["jobs"], used["total_tokens"]) == ("priced", 1, 150)
    assert used["credits"] == pytest.approx(0.2)


def test_strange_questions_about_credits_are_refused(service: Stack, engine: Any) -> None:
    """The error names the parameter."""
    http = funded(service, engine, "strange", 1)

    for query, param in (
        ("/v1/usage?group_by=hour", "group_by"),
        ("/v1/usage?group_by=day,day", "group_by"),
        ("/v1/usage?start_time=soon", "start_time"),
        ("/v1/credits/ledger?after=nobody", "after"),
        ("/v1/credits/ledger?limit=0", "limit"),
    ):
        refused = http.get(query)
        assert refused.status_code == 400, query
        assert refused.json()["error"]["param"].startswith(param), refused.json()
