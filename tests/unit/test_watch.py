"""Reading a job's stream in the terminal: server-sent events, reconnecting, what is printed."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli import ask, sse
from cli.failure import FAILED, INTERRUPTED, Failure
from cli.follow import follow, until_ended

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler) -> httpx.Client:
    """A client of a scripted API."""
    return httpx.Client(transport=httpx.MockTransport(handler), base_url="http://api")


def frame(seq: int, text: str) -> bytes:
    """One chunk as the API sends it."""
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return b"id: %d\ndata: %b\n\n" % (seq, json.dumps(chunk).encode())


DONE = b"data: [DONE]\n\n"


class Dropped(httpx.SyncByteStream):
    """A body whose connection breaks after these bytes."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts
        raise httpx.ReadError("connection reset")


def test_an_event_is_read_as_the_api_writes_it() -> None:
    """Ids stay until the next one, comments are dropped, a cut-off event is not one."""
    text = (
        b": ping\nretry: 2000\nid: 7\ndata: a\ndata: b\n\nevent: error\ndata:c\n\n: ping\ndata: x"
    )

    assert list(sse.events([text])) == [
        sse.Event("a\nb", "message", "7"),
        sse.Event("c", "error", "7"),
    ]


def test_a_line_ends_only_at_a_line_feed() -> None:
    """U+2028 and friends are text: an answer may hold them, unescaped."""
    assert list(sse.lines(["a\u2028b\x0bc\x85d\r\n".encode()])) == ["a\u2028b\x0bc\x85d"]


@given(st.lists(st.integers(1, 5), max_size=60))
def test_chunk_boundaries_mean_nothing(sizes: list[int]) -> None:
    """However the bytes are cut, in the middle of a letter too, the events are the same."""
    text = b": ping\n" + frame(1, "wörd \U0001f642") + b"event: error\ndata: {}\n\n" + DONE
    cut, at = [], 0
    for size in sizes:
        cut.append(text[at : at + size])
        at += size

    assert list(sse.events([*cut, text[at:]])) == list(sse.events([text]))


def test_following_goes_on_where_the_connection_broke() -> None:
    """Nothing is missed and nothing comes twice, through a reset, a restart and a silent end."""
    asked: list[str] = []
    answers = iter(
        [
            httpx.Response(200, stream=Dropped(frame(1, "a"), frame(2, "b"), b"id: 3\nda")),
            httpx.Response(503, json={"error": {"message": "draining", "code": "draining"}}),
            httpx.Response(200, content=frame(3, "c")),
            httpx.Response(200, content=frame(4, "d") + DONE),
        ]
    )

    def api(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["starting_after"])
        return next(answers)

    ids = [event.id for event in follow(client(api), "job_1")]

    assert ids == ["1", "2", "3", "4"]
    assert asked == ["0", "2", "2", "3"]


def test_following_ends_when_the_api_refuses() -> None:
    """A job that is not there will not come by waiting."""

    def api(_: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"error": {"message": "No such job.", "code": "not_found"}})

    with pytest.raises(Failure, match=r"No such job. \(HTTP 404, not_found\)"):
        list(follow(client(api), "job_1"))


def test_following_gives_up_in_bounded_time() -> None:
    """An API that stays away ends the command, with the words that go on later."""

    def api(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Failure, match="Nothing answers at http://api"):
        list(follow(client(api), "job_1", patience=0.2))


def test_a_stream_that_gets_nowhere_is_given_up() -> None:
    """An API that greets and hangs up, time after time, is as good as away."""

    def api(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b": ping\n")

    with pytest.raises(Failure, match="The stream broke off"):
        list(follow(client(api), "job_1", patience=0.2))


def test_waiting_outlasts_a_restart() -> None:
    """Without a stream the answer is waited for, through the API's absence too."""
    answers = iter(
        [
            httpx.Response(200, json={"status": "queued"}),
            httpx.Response(502),
            httpx.Response(200, json={"status": "completed", "choices": []}),
        ]
    )

    assert until_ended(client(lambda _: next(answers)), "job_1")["status"] == "completed"


def scripted(stream: bytes, job: dict[str, Any], text: str) -> Handler:
    """An API with one job that has ended."""
    message = {"role": "assistant", "content": text}
    completion = {"status": job["status"], "choices": [{"index": 0, "message": message}]}

    def api(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v1/jobs/"):
            return httpx.Response(200, json=job)
        if "stream" in request.url.params:
            return httpx.Response(200, content=stream)
        return httpx.Response(200, json=completion)

    return api


def test_the_answer_goes_to_stdout_and_the_rest_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is piped on is the text alone."""
    api = scripted(frame(1, "Hel") + frame(2, "lo") + DONE, {"status": "completed"}, "Hello")

    ask._show_answer(client(api), "job_1")

    out, err = capsys.readouterr()
    assert out == "Hello\n"
    assert "job_1 completed" in err


def test_a_job_that_fails_is_a_failure_with_its_reason() -> None:
    """Scripts see the exit code, people the sentence."""
    error = {"message": "The upstream hung up.", "code": "upstream_disconnected"}
    told = b"event: error\ndata: " + json.dumps({"error": error}).encode() + b"\n\n" + DONE
    api = scripted(frame(1, "Hel") + told, {"status": "failed", "error": error}, "")

    with pytest.raises(Failure, match=r"failed · The upstream hung up. \[upstream_disc") as raised:
        ask._show_answer(client(api), "job_1")

    assert raised.value.code == FAILED


def test_a_job_that_began_anew_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """What a lost attempt had said is no part of the answer."""
    api = scripted(frame(1, "Once") + frame(3, "Hello") + DONE, {"status": "completed"}, "Hello")

    ask._show_answer(client(api), "job_1")

    assert capsys.readouterr().out == "OnceHello\nHello\n"


def test_ctrl_c_while_watching_leaves_the_job_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the watching ends; the user is told how to go on."""

    def api(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as raised:
        ask._show_answer(client(api), "job_1")

    assert raised.value.exit_code == INTERRUPTED
    assert "sluice watch job_1" in capsys.readouterr().err
