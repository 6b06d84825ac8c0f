"""Rate limits through real processes: of a key, an account and a model, for two processes alike."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from sqlmodel import Session, col, select

from shared import clock, db, keys
from shared.tables import Account, ApiKey
from tests.conftest import parts
from tests.fakes.upstream import Say, Usage, WaitFor
from tests.stack import MODEL, Stack, eventually
from tests.valkey import Valkey, free_port

PATH = "/v1/chat/completions"
REQUEST: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Talk"}]}
BACKGROUND = {**REQUEST, "background": True}
SMALL = {**REQUEST, "max_tokens": 100}
LATER = {**SMALL, "run_at": clock.now() // 1000 + 24 * 3600}
LIMITED = (
    MODEL.format(name="narrow")
    + """
[models.narrow.limits]
requests_per_minute = 2

[models.priced]
upstream = "fake"
context_window = 8192
max_output_tokens = 1000
input_price = 1.0
output_price = 1.0
"""
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running service with a model that has limits and one that costs something."""
    with parts(tmp_path_factory.mktemp("service")) as opened:
        opened.catalogue(MODEL.format(name="test") + LIMITED)
        yield opened.up()


def limited(
    stack: Stack,
    name: str,
    *,
    account: dict[str, int] | None = None,
    key: dict[str, int] | None = None,
) -> str:
    """A key, and its account of this name, with these limits."""
    engine = db.connect(stack.database_url)
    with Session(engine) as session, session.begin():
        row, text = keys.create(session, account=name)
        row.limits = key
        session.exec(select(Account).where(col(Account.name) == name)).one().limits = account
        assert isinstance(row, ApiKey)
    engine.dispose()
    return text


def test_what_came_before_is_answered_although_the_limit_is_reached(service: Stack) -> None:
    """Its answer was lost, perhaps; it costs nothing to give it once more."""
    http = service.http(limited(service, "again", key={"requests_per_minute": 1}))
    named = {"idempotency-key": "only"}

    first = http.post(PATH, json=REQUEST, headers=named)
    again = http.post(PATH, json=REQUEST, headers=named)
    other = http.post(PATH, json=REQUEST, headers={"idempotency-key": "other"})

    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert other.status_code == 429


def left(http: httpx.Client, unit: str) -> int:
    """What remains of the caller's limit, as the queue shows it."""
    limits = http.get("/v1/queue").json()["limits"]
    [found] = [each for each in limits if each["unit"] == unit and each["scope"] != "model"]
    remaining: int = found["remaining"]
    return remaining


def test_the_sdk_is_told_to_wait(service: Stack) -> None:
    """It raises `RateLimitError`, with which limit it was, and how long to wait, in the headers."""
    key = limited(service, "waits", key={"requests_per_minute": 1})
    client = service.client(key)
    client.chat.completions.create(**REQUEST)

    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**REQUEST)

    told, body = refused.value.response.headers, refused.value.response.json()["error"]
    assert (refused.value.code, body["scope"], body["unit"]) == (
        *("rate_limit_exceeded", "key"),
        "requests_per_minute",
    )
    assert (body["limit"], body["retryable"]) == (1, True)
    assert 0 < body["reset"] <= 60
    assert 1 <= int(told["retry-after"]) <= 60
    assert int(told["retry-after-ms"]) == pytest.approx(body["reset"] * 1000, abs=1)
    assert told["x-ratelimit-limit-requests"] == "1"
    assert told["x-ratelimit-remaining-requests"] == "0"
    assert told["x-ratelimit-reset-requests"].endswith("s")
    assert told["ratelimit"].startswith('"requests";r=0;t=')
    assert told["ratelimit-policy"] == '"requests";q=1;w=60'


def test_the_sdk_tries_again_when_there_is_room(service: Stack) -> None:
    """By itself, after what it was told: at sixty a minute, one comes back in a second."""
    key = limited(service, "patient", account={"requests_per_minute": 60})
    assert service.http(key).post("/v1/jobs", json=[LATER] * 60).status_code == 202

    answer = service.client(key, max_retries=5).chat.completions.create(**REQUEST)

    assert answer.choices


def test_every_form_of_submission_says_what_is_left(service: Stack) -> None:
    """Held, streamed, in the background, native, and an array: each takes what it is."""
    bounds = {"requests_per_minute": 100_000, "tokens_per_minute": 10_000_000}
    http = service.http(limited(service, "told", account=bounds))

    answers = [
        http.post(PATH, json=REQUEST),
        http.post(PATH, json={**REQUEST, "stream": True}),
        http.post(PATH, json=BACKGROUND),
        http.post("/v1/public/chat/completions", json=REQUEST),
        http.post("/v1/jobs", json=REQUEST),
        http.post("/v1/jobs", json=[LATER] * 100),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 202, 200, 202, 202]
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == "100000"
        assert answer.headers["x-ratelimit-limit-tokens"] == "10000000"
        assert float(answer.headers["x-ratelimit-reset-tokens"].rstrip("s")) > 0
    before, after = (
        [int(answer.headers[f"x-ratelimit-remaining-{kind}"]) for kind in ("requests", "tokens")]
        for answer in answers[-2:]
    )
    assert before[0] > after[0]
    assert before[1] > after[1]
    assert http.get("/v1/models").headers.get("x-ratelimit-limit-requests") is None


def test_an_array_takes_as_many_requests_as_it_has_jobs(service: Stack) -> None:
    """All or none; one that could never fit is not worth trying again."""
    http = service.http(limited(service, "arrays", account={"requests_per_minute": 10}))

    never, once, refused, last = (
        http.post("/v1/jobs", json=[LATER] * number) for number in (11, 9, 9, 1)
    )

    assert [each.status_code for each in (never, once, refused, last)] == [429, 202, 429, 202]
    assert never.headers["x-should-retry"] == "false"
    assert "x-should-retry" not in refused.headers
    assert "never fits" in never.json()["error"]["message"]


def test_a_models_limit_holds_for_each_account(service: Stack) -> None:
    """Also for a key without limits; other models and other accounts are free."""
    ours, theirs = (service.http(limited(service, name)) for name in ("crowded", "free"))
    narrow = {**BACKGROUND, "model": "narrow"}

    codes = [ours.post(PATH, json=narrow).status_code for _ in range(3)]

    assert codes == [202, 202, 429]
    assert ours.post(PATH, json=narrow).json()["error"]["scope"] == "model"
    assert ours.post(PATH, json=BACKGROUND).status_code == 202
    assert theirs.post(PATH, json=narrow).status_code == 202


def test_so_many_may_be_open_at_once(service: Stack) -> None:
    """Held and streamed; a place is free again when the job has ended, by whichever way."""
    go = threading.Event()
    key = limited(service, "open", key={"concurrency": 2})
    http = service.http(key)
    service.upstream.script("test", Say("Hi"), WaitFor(go), Say(" there"))
    streamed = {**REQUEST, "stream": True}

    with ThreadPoolExecutor() as pool:
        held = pool.submit(http.post, PATH, json=REQUEST)
        with service.http(key).stream("POST", PATH, json=streamed) as opened:
            eventually(lambda: left(http, "concurrency") == 0)
            refused = http.post(PATH, json=streamed)
            beside = http.post(PATH, json=BACKGROUND)
            replay = service.http(key).stream("GET", f"{opened.headers['location']}?stream=true")
            with replay as resumed:
                assert resumed.status_code == 200
        assert left(http, "concurrency") == 0, "its reader has left, and the job goes on"
        http.post(f"{opened.headers['location']}/cancel")
        eventually(lambda: left(http, "concurrency") == 1)
        go.set()
        assert held.result().status_code == 200

    assert left(http, "concurrency") == 2
    assert (refused.status_code, beside.status_code) == (429, 202)
    assert refused.json()["error"]["unit"] == "concurrency"
    assert (refused.json()["error"]["limit"], refused.headers["retry-after"]) == (2, "1")


def test_who_finds_no_place_has_asked_for_nothing(service: Stack) -> None:
    """The refusal says what is left as if it had not come, and so it is."""
    bounds = {"requests_per_minute": 100, "concurrency": 1}
    http = service.http(limited(service, "no place", account=bounds))
    service.upstream.script("test", WaitFor(go := threading.Event()), Say("Hi"))

    with http.stream("POST", PATH, json={**REQUEST, "stream": True}):
        refused = [http.post(PATH, json=REQUEST) for _ in range(5)]
        go.set()

    assert {each.json()["error"]["scope"] for each in refused} == {"account"}
    assert {each.headers["x-ratelimit-remaining-requests"] for each in refused} <= {"99", "100"}


def test_two_processes_have_room_for_one(stack: Stack, redis_server: Valkey) -> None:
    """Of a crowd that comes through both exactly one gets in, with Redis and without; the process
    that let it in may die."""
    others = free_port()
    stack.api()
    killed = stack.api(others)
    key = limited(stack, "crowd", account={"concurrency": 1})
    doors = [stack.http(key), stack.http(key)]
    doors[1].base_url = httpx.URL(f"http://127.0.0.1:{others}")

    def ask(number: int) -> httpx.Response:
        return doors[number % 2].post(PATH, json=REQUEST, headers={"prefer": "wait=1"})

    def entered() -> str:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(6)))
        assert sorted(answer.status_code for answer in answers) == [429] * 5 + [504]
        [job_id] = [each.headers["x-job-id"] for each in answers if each.status_code == 504]
        return str(job_id)

    doors[0].post(f"/v1/jobs/{entered()}/cancel")
    redis_server.stop()
    still_there = entered()
    killed.kill()

    assert ask(0).status_code == 429
    doors[0].post(f"/v1/jobs/{still_there}/cancel")
    assert ask(0).status_code == 504


def test_one_after_another_needs_one_place(service: Stack) -> None:
    """Who has the whole answer, or its `[DONE]`, may ask at once for the next."""
    client = service.client(limited(service, "serial", account={"concurrency": 1}))
    service.upstream.script("test", Say("Hi"))

    for _ in range(8):
        assert client.chat.completions.create(**REQUEST).choices
        assert list(client.chat.completions.create(**REQUEST, stream=True))


def test_tokens_are_put_right_when_the_answer_is_there(service: Stack) -> None:
    """The most it may take is set aside, what it took remains, whoever waits for it."""
    service.upstream.script("test", Say("one two"), Usage(100, 50))
    for form in ({}, {"stream": True}, {"background": True}):
        name = f"tokens {form}"
        http = service.http(limited(service, name, account={"tokens_per_minute": 2_000}))

        answer = http.post(PATH, json={**REQUEST, "max_tokens": 1500, **form})

        # Thirty-three come back every second.
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 600
        eventually(partial(_has, http, "tokens_per_minute", 1_840))


def test_what_never_ran_gives_its_tokens_back(service: Stack) -> None:
    """Each job of an array by itself, and once."""
    http = service.http(limited(service, "cancelled", account={"tokens_per_minute": 9_000}))
    later = {**LATER, "max_tokens": 2_000}
    jobs = http.post("/v1/jobs", json=[later, later, later, later]).json()["data"]

    first = f"/v1/jobs/{jobs[0]['id']}/cancel"
    assert [http.post(first).status_code for _ in range(3)] == [200] * 3

    # A hundred and fifty come back every second.
    assert 2_900 <= left(http, "tokens_per_minute") < 4_900


def _has(http: httpx.Client, unit: str, least: int) -> bool:
    return left(http, unit) >= least


def test_what_is_refused_later_takes_nothing(service: Stack) -> None:
    """No credits, another body under the same key, the same request once more: all given back."""
    bounds = {"requests_per_minute": 3, "concurrency": 1, "tokens_per_minute": 100_000}
    http = service.http(limited(service, "given back", account=bounds))
    named = {"idempotency-key": "once"}
    first = http.post(PATH, json=REQUEST, headers=named)

    poor = [http.post(PATH, json={**REQUEST, "model": "priced"}).status_code for _ in range(5)]
    reused = [http.post(PATH, json=SMALL, headers=named).status_code for _ in range(5)]
    again = [http.post(PATH, json=REQUEST, headers=named) for _ in range(5)]

    assert (first.status_code, poor, reused) == (200, [402] * 5, [422] * 5)
    assert {each.headers.get("idempotency-replayed") for each in again} == {"true"}
    assert left(http, "requests_per_minute") >= 2
    assert left(http, "concurrency") == 1


def test_two_processes_share_a_limit(service: Stack) -> None:
    """A crowd that comes through both gets what the limit says, and no more."""
    port = free_port()
    service.api(port)
    key = limited(service, "shared", account={"requests_per_minute": 10})
    doors = [service.http(key), service.http(key)]
    doors[1].base_url = httpx.URL(f"http://127.0.0.1:{port}")

    began = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: doors[n % 2].post(PATH, json=BACKGROUND), range(40)))
    back = int((time.monotonic() - began) / 6) + 1

    codes = [answer.status_code for answer in answers]
    assert 10 <= codes.count(202) <= 10 + back
    assert codes.count(202) + codes.count(429) == 40


def test_the_queue_shows_lanes_and_limits(service: Stack) -> None:
    """Its depth, what runs, its pace, and each limit that holds for the caller."""
    go = threading.Event()
    service.upstream.script("test", WaitFor(go), Say("Hi"))
    bounds = {"requests_per_minute": 50, "concurrency": 3}
    http = service.http(limited(service, "looks", account=bounds, key={"tokens_per_minute": 9_000}))
    http.post(PATH, json=BACKGROUND)

    def running() -> Any:
        shown = http.get("/v1/queue").json()
        return shown["lanes"][0]["running"] and shown

    shown = eventually(running)
    go.set()

    interactive, batch = shown["lanes"]
    assert (interactive["lane"], batch["lane"]) == ("interactive", "batch")
    assert interactive["drained_per_minute"] >= 0
    assert interactive["wait"]["p90"] >= interactive["wait"]["p50"] >= 0
    assert batch == {
        "lane": "batch",
        "depth": 0,
        "running": 0,
        "drained_per_minute": 0,
        "wait": {"p50": None, "p90": None},
    }
    listed = {(each["scope"], each["model"], each["unit"]): each for each in shown["limits"]}
    assert listed.keys() == {
        ("account", None, "requests_per_minute"),
        ("model", "narrow", "requests_per_minute"),
        ("key", None, "tokens_per_minute"),
        ("account", None, "concurrency"),
    }
    assert listed["account", None, "requests_per_minute"]["remaining"] == 49
    assert listed["account", None, "concurrency"]["reset"] is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_queue_refuses_before_anything_is_taken(stack: Stack) -> None:
    """503 `queue_full` with Retry-After; as soon as there is room it accepts again.

    A request that came before finds its job.
    """
    stack.api(SLUICE_QUEUE_LIMIT="3")
    key = limited(stack, "ours", account={"requests_per_minute": 10})
    http = stack.http(key)

    first = http.post(PATH, json=BACKGROUND, headers={"idempotency-key": "mine"}).json()
    codes = [http.post(PATH, json=BACKGROUND).status_code for _ in range(3)]
    refused = http.post("/v1/jobs", json=[REQUEST] * 2)
    again = http.post(PATH, json=BACKGROUND, headers={"idempotency-key": "mine"})

    assert codes == [202, 202, 503]
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert left(http, "requests_per_minute") == 7
    stack.worker()
    eventually(lambda: http.post(PATH, json=BACKGROUND).status_code == 202, 30)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_redis_a_process_counts_by_itself(stack: Stack, redis_server: Valkey) -> None:
    """The same limits, for each process; Redis goes on where it was."""
    stack.api()
    http = stack.http(limited(stack, "alone", account={"requests_per_minute": 3, "concurrency": 5}))
    assert http.post(PATH, json=BACKGROUND).status_code == 202

    redis_server.stop()
    codes = [http.post(PATH, json=BACKGROUND).status_code for _ in range(4)]
    remaining = left(http, "requests_per_minute")
    redis_server.restart()

    assert codes == [202, 202, 202, 429]
    assert remaining == 0
    eventually(partial(_has, http, "requests_per_minute", 2))
