"""Our event streams, byte by byte: numbers, replays, readers side by side, and how they end."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.fakes.upstream import (
    ErrorInBand,
    Finish,
    Reset,
    Say,
    Stall,
    Status,
    Step,
    Wait,
    WaitFor,
)
from tests.frames import Frame, frames, text_of
from tests.stack import MODEL, Stack, eventually

WORDS = "one two three four five"
REQUEST = {"model": "test", "messages": [{"role": "user", "content": "Count"}]}
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def http(service: Stack) -> httpx.Client:
    """A plain client of the service that the tests of this module share."""
    return service.http()


@contextmanager
def streamed(http: httpx.Client, **more: Any) -> Iterator[httpx.Response]:
    """The answer to a plain streaming request, still to be read."""
    body = {**REQUEST, "stream": True, **more}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        yield response


@contextmanager
def taken_up(
    http: httpx.Client, job_id: str, *, last_event_id: int | None = None, **query: Any
) -> Iterator[httpx.Response]:
    """A job's stream from some point on, still to be read."""
    headers = {} if last_event_id is None else {"last-event-id": str(last_event_id)}
    path, params = f"/v1/chat/completions/{job_id}", {"stream": "true", **query}
    with http.stream("GET", path, params=params, headers=headers) as response:
        yield response


def replayed(http: httpx.Client, job_id: str, **where: Any) -> list[Frame]:
    """A job's stream from some point to its end."""
    with taken_up(http, job_id, **where) as response:
        assert response.status_code == 200, response.read()
        return read(response)


def read(response: httpx.Response) -> list[Frame]:
    """A stream to its end; only its first frame may say when to reconnect."""
    seen = list(frames(response.iter_raw()))
    assert [frame.retry for frame in seen[1:]] == [None] * (len(seen) - 1)
    return [replace(frame, retry=None) for frame in seen]


def submitted(http: httpx.Client, **more: Any) -> str:
    """The id of a new background job."""
    response = http.post("/v1/chat/completions", json={**REQUEST, "background": True, **more})
    assert response.status_code == 202, response.read()
    return response.headers["x-job-id"]


def job_of(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """The native view of a job."""
    job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
    return job


def ended(http: httpx.Client, job_id: str, **query: str) -> dict[str, Any]:
    """The OpenAI view of a job, once it has ended."""
    path = f"/v1/chat/completions/{job_id}"
    found = http.get(path, params=query, headers={"prefer": "wait=30"})
    completion: dict[str, Any] = found.json()
    return completion


def test_a_stream_is_numbered_and_framed(service: Stack, http: httpx.Client) -> None:
    """Numbers grow by one per chunk from 1, and every frame is one that all SDKs can read."""
    service.upstream.script("test", Say(WORDS, every=0.005))

    with streamed(http, **USAGE) as response:
        raw = list(frames(response.iter_raw()))

    chunks, last = raw[:-1], raw[-1]
    assert [frame.id for frame in chunks] == list(range(1, 9))  # role, 5 words, finish, usage
    assert [frame.retry for frame in raw] == [2000] + [None] * 8
    assert {frame.event for frame in raw} == {None}
    assert last.data == "[DONE]"
    assert {frame.json["object"] for frame in chunks} == {"chat.completion.chunk"}
    assert text_of(raw) == WORDS


def test_a_stream_is_not_cached_or_buffered_on_its_way(service: Stack, http: httpx.Client) -> None:
    """Its headers say so to proxies, and say which job it is."""
    service.upstream.script("test", Say(WORDS))

    with streamed(http) as response:
        chunk = read(response)[0].json

    headers = response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"].startswith("req_")
    assert chunk["id"] == headers["x-job-id"].replace("job_", "chatcmpl-")
    assert headers["location"] == f"/v1/chat/completions/{chunk['id']}"


@pytest.mark.parametrize("more", [{}, USAGE], ids=["plain", "usage"])
def test_a_replay_is_exactly_the_rest(
    service: Stack, http: httpx.Client, more: dict[str, Any]
) -> None:
    """After every chunk, by the query or the header, with what Redis keeps and without."""
    service.upstream.script("test", Say(WORDS))
    with streamed(http, **more) as response:
        whole = read(response)
    job_id = response.headers["x-job-id"]
    chunks = len(whole) - 1

    def rests(by: str) -> list[list[Frame]]:
        return [replayed(http, job_id, **{by: after}) for after in range(last)]

    last = chunks if more else chunks + 1
    expected = [whole[after:] for after in range(last)]
    assert rests("starting_after") == expected
    assert rests("last_event_id") == expected
    assert replayed(http, job_id) == whole
    with redis.Redis.from_url(service.redis_url) as server:
        server.flushall()
    assert rests("starting_after") == expected
    assert replayed(http, job_id) == whole


def test_the_queue_survives_the_loss_of_redis_data(service: Stack, http: httpx.Client) -> None:
    """Jobs are rows: what was queued and what comes next is done all the same."""
    service.upstream.script("test", Say(WORDS))
    later = int(time.time()) + 1
    waiting = http.post("/v1/jobs", json={**REQUEST, "run_at": later}).json()["id"]

    with redis.Redis.from_url(service.redis_url) as server:
        server.flushall()

    assert http.post("/v1/chat/completions", json=REQUEST).status_code == 200
    assert ended(http, waiting)["status"] == "completed"


def test_a_reader_who_comes_in_the_middle_gets_exactly_the_rest(
    service: Stack, http: httpx.Client
) -> None:
    """While the job speaks, after every chunk that there is, and one that is still to come."""
    go = threading.Event()
    service.upstream.script("test", Say("one two three"), WaitFor(go), Say(" four five"))

    with ExitStack() as readers:
        first = readers.enter_context(streamed(http))
        job_id = first.headers["x-job-id"]
        eventually(lambda: job_of(http, job_id)["progress"]["last_seq"] == 4)
        others = [
            readers.enter_context(taken_up(http, job_id, starting_after=after))
            for after in range(6)
        ]
        go.set()
        whole = read(first)
        rests = [read(other) for other in others]

    assert text_of(whole) == WORDS
    assert rests == [whole[after:] for after in range(6)]


def test_two_readers_see_the_same_bytes(service: Stack, http: httpx.Client) -> None:
    """Who asked, who came while it spoke, and who came afterwards."""
    service.upstream.script("test", Say(WORDS, every=0.02))

    with streamed(http) as first:
        job_id = first.headers["x-job-id"]
        with taken_up(http, job_id) as second:
            said = [b"".join(each.iter_raw()) for each in (first, second)]
    with taken_up(http, job_id) as third:
        said.append(b"".join(third.iter_raw()))

    assert said[0].count(b"data: ") == 8
    assert said[0] == said[1] == said[2]


def test_a_browser_that_reconnects_resumes_where_it_was(service: Stack, http: httpx.Client) -> None:
    """It repeats its first URL with the last id it saw: the larger number counts."""
    service.upstream.script("test", Say(WORDS))
    with streamed(http) as response:
        whole = read(response)
    job_id = response.headers["x-job-id"]

    assert replayed(http, job_id, starting_after=2, last_event_id=5) == whole[5:]
    assert replayed(http, job_id, starting_after=5, last_event_id=2) == whole[5:]


@pytest.mark.parametrize("more", [{}, USAGE], ids=["plain", "usage"])
@pytest.mark.parametrize("ending", [Finish(), ErrorInBand()], ids=["completed", "failed"])
def test_a_browser_that_has_seen_the_end_is_told_to_stay_away(
    service: Stack, http: httpx.Client, more: dict[str, Any], ending: Step
) -> None:
    """204 for the last number there was: an EventSource would reconnect for ever."""
    service.upstream.script("test", Say("Bye."), ending)
    with streamed(http, **more) as response:
        last = [frame.id for frame in read(response) if frame.id][-1]

    with taken_up(http, response.headers["x-job-id"], last_event_id=last) as again:
        assert again.status_code == 204


def test_a_job_that_was_not_streamed_can_be_read_as_a_stream(
    service: Stack, http: httpx.Client
) -> None:
    """What was held, as it was said."""
    service.upstream.script("test", Say(WORDS))
    held = http.post("/v1/chat/completions", json=REQUEST)

    seen = replayed(http, held.headers["x-job-id"])

    assert text_of(seen) == held.json()["choices"][0]["message"]["content"] == WORDS
    assert [frame.id for frame in seen[:-1]] == list(range(1, 8))


def events_of(http: httpx.Client, job_id: str, after: int = 0) -> list[Frame]:
    """The native events of a job, from the first or after a number, to the last."""
    headers = {"last-event-id": str(after)} if after else {}
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        return read(response)


def test_native_events_tell_the_life_of_a_job(service: Stack, http: httpx.Client) -> None:
    """By name and in order, to the final job object; from any number on, and then no more."""
    service.upstream.script("test", Say("one two", every=0.01))
    job_id = submitted(http, stream=False)

    live = events_of(http, job_id)

    words = ["job.delta"] * 4  # role, two words, finish
    names = ["job.queued", "job.started", *words, "job.usage", "job.completed"]
    assert [frame.event for frame in live] == names
    assert [frame.id for frame in live if frame.event == "job.delta"] == [1, 2, 3, 4]
    assert text_of(live) == "one two"
    assert live[-2].json["completion_tokens"] == 2
    assert live[-1].json["job"] == job_of(http, job_id)
    replay = events_of(http, job_id)
    assert [(frame.event, frame.id) for frame in replay] == [(each.event, each.id) for each in live]
    assert [frame.event for frame in events_of(http, job_id, after=3)] == names[5:]
    again = http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": str(live[-1].id)})
    assert again.status_code == 204


def test_a_job_that_begins_anew_says_what_to_forget(service: Stack, http: httpx.Client) -> None:
    """The partial text of a broken attempt is void; numbers go on growing over both."""
    broken, whole = (Say("zero zero", every=0.01), Wait(1.5), Reset()), (Say(WORDS),)
    service.upstream.script_calls("test", broken, whole)
    job_id = submitted(http, stream_options=None)

    seen = events_of(http, job_id)

    numbers = [frame.id for frame in seen if frame.id is not None]
    [retrying] = [frame for frame in seen if frame.event == "job.retrying"]
    forgotten = range(retrying.json["discard_from_seq"], retrying.id or 0)
    deltas = [frame for frame in seen if frame.event == "job.delta" and frame.id not in forgotten]
    assert numbers == sorted(set(numbers))
    assert text_of(deltas) == WORDS == ended(http, job_id)["choices"][0]["message"]["content"]
    chunks = replayed(http, job_id)
    assert text_of(chunks) == WORDS
    assert [frame.id for frame in chunks[:-1]] == [frame.id for frame in deltas]


def test_cancelling_closes_the_upstream_and_tells_the_reader(
    service: Stack, http: httpx.Client
) -> None:
    """Within a second; what was said until then is kept."""
    service.upstream.script("test", Say("one two"), Stall())

    with streamed(http) as response:
        job_id = response.headers["x-job-id"]
        eventually(lambda: job_of(http, job_id)["progress"]["deltas"] == 3)
        asked_at = time.monotonic()
        assert http.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
        seen = read(response)

    assert text_of(seen[:-2]) == "one two"
    assert (seen[-2].event, seen[-1].data) == ("error", "[DONE]")
    assert seen[-2].json["error"]["code"] == "job_cancelled"
    assert seen[-2].json["error"]["job_id"] == job_id
    service.upstream.wait_until(lambda up: up.calls[-1].finished == "closed_by_client")
    closed_at = service.upstream.calls[-1].closed_at
    assert closed_at is not None
    assert closed_at - asked_at < 1.0
    kept = ended(http, job_id, partial="true")
    assert (kept["status"], kept["choices"][0]["message"]["content"]) == ("cancelled", "one two")
    assert kept["usage"] == job_of(http, job_id)["usage"]
    assert replayed(http, job_id) == seen


def test_what_was_said_so_far_can_be_read_while_it_is_said(
    service: Stack, http: httpx.Client
) -> None:
    """`?partial=true`; without it a running job shows no choices."""
    go = threading.Event()
    service.upstream.script("test", Say("one two"), WaitFor(go), Say(" three"))
    job_id = submitted(http)
    eventually(lambda: job_of(http, job_id)["progress"]["deltas"] == 3)
    path = f"/v1/chat/completions/{job_id}"

    partial, plain = http.get(path, params={"partial": "true"}).json(), http.get(path).json()

    go.set()
    assert (partial["status"], plain["status"]) == ("in_progress", "in_progress")
    assert partial["choices"][0]["message"]["content"] == "one two"
    assert plain["choices"] == []
    assert ended(http, job_id)["choices"][0]["message"]["content"] == "one two three"


def test_a_job_cancelled_before_it_ran_ends_its_stream(service: Stack, http: httpx.Client) -> None:
    """A reader that waits for it is told, and told to stay away."""
    later = int(time.time()) + 3600
    job_id = http.post("/v1/jobs", json={**REQUEST, "run_at": later}).json()["id"]

    with taken_up(http, job_id) as response:
        cancelled = http.post(f"/v1/jobs/{job_id}/cancel").json()
        seen = read(response)

    assert cancelled["status"] == "cancelled"
    assert [frame.event for frame in seen] == ["error", None]
    assert seen[0].json["error"]["code"] == "job_cancelled"
    last = {"last-event-id": str(seen[0].id)}
    for path in (f"/v1/chat/completions/{job_id}?stream=true", f"/v1/jobs/{job_id}/events"):
        assert http.get(path, headers=last).status_code == 204


def test_an_upstream_without_room_is_asked_again_and_then_fails_in_band(
    service: Stack, http: httpx.Client
) -> None:
    """Three tries take too long for a status line; the stream says what happened."""
    service.upstream.script("test", Status(503))
    calls = len(service.upstream.calls)

    with streamed(http) as response:
        seen = read(response)

    assert [frame.event for frame in seen] == ["error", None]
    assert seen[0].json["error"]["code"] == "upstream_overloaded"
    assert len(service.upstream.calls) == calls + 3


ROUTES = [
    ("GET", "/v1/chat/completions/{id}"),
    ("GET", "/v1/chat/completions/{id}?stream=true"),
    ("GET", "/v1/chat/completions/{id}?partial=true"),
    ("GET", "/v1/chat/completions/{id}/messages"),
    ("POST", "/v1/chat/completions/{id}"),
    ("POST", "/v1/chat/completions/{id}/cancel"),
    ("DELETE", "/v1/chat/completions/{id}"),
    ("GET", "/v1/jobs/{id}"),
    ("GET", "/v1/jobs/{id}/events"),
    ("GET", "/v1/jobs/{id}/attempts"),
    ("POST", "/v1/jobs/{id}/cancel"),
]


def test_another_account_finds_nothing(service: Stack, http: httpx.Client) -> None:
    """404 on every way to a job, which goes on untouched, and is in nobody else's lists."""
    go = threading.Event()
    service.upstream.script("test", WaitFor(go), Say(WORDS))
    job_id = submitted(http, metadata={"secret": "yes"})
    theirs = service.http(service.mint("theirs"))

    answers = [
        theirs.request(
            method, path.format(id=job_id), json={"metadata": {}} if method == "POST" else None
        )
        for method, path in ROUTES
    ]
    lists = [theirs.get(path).json()["data"] for path in ("/v1/jobs", "/v1/chat/completions")]

    go.set()
    assert [answer.status_code for answer in answers] == [404] * len(ROUTES)
    assert {answer.json()["error"]["code"] for answer in answers} == {"not_found"}
    assert lists == [[], []]
    completion = ended(http, job_id)
    assert (completion["status"], completion["metadata"]) == ("completed", {"secret": "yes"})


MUCH = ["much " * 20_000] * 100
"""Ten megabytes: more than sockets hold."""
LIMIT = "[models.test.limits]\nconcurrency = 2\n"


def left_of_the_limit(http: httpx.Client) -> int:
    """How many more may be open at once."""
    [limit] = http.get("/v1/queue").json()["limits"]
    remaining: int = limit["remaining"]
    return remaining


def held_by_the_api(response: httpx.Response) -> bool:
    """Whether its side of this connection is still there."""
    ours = response.extensions["network_stream"].get_extra_info("socket")
    pair = [f"0100007F:{port:04X}" for _, port in (ours.getpeername(), ours.getsockname())]
    return " ".join(pair) in Path("/proc/net/tcp").read_text()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_reader_that_stands_still_is_let_go(stack: Stack) -> None:
    """Its connection is free, and it counts as one that left: it can come back and miss nothing.
    Its place is free as soon as its job has ended. Nobody beside it notices."""
    stack.catalogue(MODEL.format(name="test") + LIMIT + MODEL.format(name="test-1"))
    stack.environment |= {"SLUICE_UNREAD_TIMEOUT": "PT2S", "SLUICE_DISCONNECT_GRACE": "PT1S"}
    http, go = stack.up().http(), threading.Event()
    stack.upstream.script("test", Say(pieces=MUCH), WaitFor(go), Say(" the end"))
    stack.upstream.script("test-1", Say("one two"), WaitFor(go), Say(" three"))

    with ExitStack() as opened:
        neighbour = opened.enter_context(streamed(http, model="test-1"))
        still = [
            opened.enter_context(streamed(http, **more))
            for more in ({}, {"on_disconnect": "continue"})
        ]
        readers = [frames(each.iter_raw()) for each in still]
        first = [next(reader) for reader in readers]
        abandoned, told = (each.headers["x-job-id"] for each in still)

        assert left_of_the_limit(http) == 0
        eventually(lambda: "sluice_readers 1.0" in http.get("/metrics").text)
        eventually(lambda: not any(map(held_by_the_api, still)), 20)
        assert held_by_the_api(neighbour)
        eventually(lambda: job_of(http, abandoned)["status"] == "cancelled")
        assert left_of_the_limit(http) == 1
        go.set()
        assert text_of(read(neighbour)) == "one two three"

    rest = replayed(http, told, last_event_id=first[1].id)
    assert rest[0].id == 2
    assert text_of([first[1], *rest]) == "".join(MUCH) + " the end"
    assert ended(http, told)["choices"][0]["message"]["content"] == "".join(MUCH) + " the end"


def held_too_long(http: httpx.Client) -> str:
    """A plain request that is not waited for; its job."""
    request = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"prefer": "wait=0.5"}
    response = http.post("/v1/chat/completions", json=request, headers=headers)
    assert response.status_code == 504
    return response.headers["x-job-id"]


def test_a_stream_lives_by_its_readers(stack: Stack) -> None:
    """One that was left is cancelled after the grace. One that was told to go on does, and so do
    one whose reader came back and one whose caller was promised so by a 504. Held requests are as
    streams in this."""
    stack.environment["SLUICE_DISCONNECT_GRACE"] = "PT3S"
    http, go = stack.up().http(), threading.Event()
    stack.upstream.script("test", Say("one two"), WaitFor(go), Say(" three"))

    def left(**more: str) -> str:
        with streamed(http, **more) as response:
            next(response.iter_raw())
            return response.headers["x-job-id"]

    abandoned, told, returned = left(), left(on_disconnect="continue"), left()
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=REQUEST, timeout=0.5)
    unheld = http.get("/v1/jobs", params={"limit": 1}).json()["data"][0]["id"]
    promised = held_too_long(http)
    with taken_up(http, returned) as response:
        for each in (abandoned, unheld):
            eventually(lambda: job_of(http, each)["status"] == "cancelled", 15)  # noqa: B023
        stack.upstream.wait_until(lambda up: up.calls[0].finished == "closed_by_client")
        statuses = [job_of(http, each)["status"] for each in (told, returned, promised)]
        go.set()
        text = text_of(read(response))

    assert statuses == ["in_progress"] * 3
    assert text == "one two three"
    for job_id in (told, promised):
        assert ended(http, job_id)["choices"][0]["message"]["content"] == "one two three"
