"""Following a batch in the terminal: broken connections, busy servers, what is shown."""

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.console import Console

from cli.batch_following import pages, told
from cli.batch_screen import Display, Pace, summary
from cli.failure import Failure

COUNTS = {"total": 4, "completed": 1, "failed": 1, "cancelled": 0, "expired": 1}
PROGRESS: dict[str, Any] = {
    "status": "in_progress",
    "status_reason": "waiting_for_worker",
    "counts": COUNTS,
    "usage": {"output_tokens": 1234},
    "cost": {"credits": 0.25},
    "eta_seconds": 61,
    "last_result": 3,
}
BATCH = {"id": "batch_1", "status": "expired", "error_summary": None, "errors": None}
BUSY = {"error": {"message": "The database is away.", "code": "unavailable"}}


def client(*answers: httpx.Response | httpx.TransportError) -> httpx.Client:
    """A client of an API that gives these answers, one after the other."""
    left = iter(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        following = next(left)
        if isinstance(following, httpx.TransportError):
            raise following
        return following

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://api")


def frame(name: str, data: dict[str, Any]) -> bytes:
    """An event as the API sends it."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def test_a_batch_is_followed_through_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    """A stream that ends in the middle, a server that is away or has no time."""
    progress, end = frame("batch.progress", PROGRESS), frame("batch.expired", {"batch": BATCH})
    api = client(
        httpx.Response(200, content=progress + b": ping\n"),
        httpx.Response(503, json=BUSY),
        httpx.ConnectError("refused"),
        httpx.Response(200, content=progress + end),
    )

    assert list(told(api, "batch_1")) == [PROGRESS, PROGRESS, BATCH]
    assert capsys.readouterr().err == "The connection was lost. Trying again …\n"


def test_a_refusal_ends_it() -> None:
    """Nobody waits for what will not come."""
    missing = {"error": {"message": "There is no batch.", "code": "not_found"}}
    with pytest.raises(Failure, match="There is no batch"):
        list(told(client(httpx.Response(404, json=missing)), "batch_1"))


def test_pages_go_on_after_the_number_that_the_api_says() -> None:
    """Not after as many lines as there were: a line tried anew leaves a gap."""
    api = client(
        httpx.Response(200, content=b"{}\n{}\n", headers={"x-next-cursor": "5"}),
        httpx.Response(503, json=BUSY),
        httpx.Response(200, content=b"", headers={"x-next-cursor": "7"}),
    )

    assert list(pages(api, "batch_1", 0, 7)) == [(b"{}\n{}\n", 5), (b"", 7)]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_or_a_line(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar where somebody looks; lines, seldom, where it goes to a log."""
    shown = io.StringIO()
    with Display(Console(file=shown, force_terminal=terminal, width=200)) as display:
        display.show(PROGRESS)
        display.show(PROGRESS)

    said = shown.getvalue() if terminal else capsys.readouterr().err
    line = "waiting_for_worker · 3 of 4 done · 2 failed · 1,234 tokens · 0.25 credits · 0:01:01"
    assert line in said
    assert ("━" in said) is terminal
    assert terminal or said.count("\n") == 1


def test_the_pace_is_that_of_the_last_half_minute() -> None:
    """Unknown at first, and what came long ago does not count."""
    moments = iter([0.0, 2.0, 32.0, 42.0])
    clock: Callable[[], float] = lambda: next(moments)  # noqa: E731
    pace = Pace(clock)

    assert [pace.of(number) for number in (100, 300, 600, 700)] == [None, 100, 10, 10]


def test_a_summary_says_what_went_wrong() -> None:
    """The most frequent first; what never ran has no message."""
    errors = [
        {"code": "upstream_error", "count": 1200, "sample": "No such thing."},
        {"code": "batch_expired", "count": 1, "sample": None},
    ]
    said = summary({**PROGRESS, **BATCH, "status_reason": None, "error_summary": errors})

    assert said.splitlines()[0].startswith("batch_1 · expired · 3 of 4 done · 2 failed")
    assert said.splitlines()[1:] == [
        "  1,200 × upstream_error: No such thing.",
        "  1 × batch_expired",
    ]
