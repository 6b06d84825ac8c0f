"""A server that speaks Anthropic's Messages API, called over a real connection."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import uvloop

from shared.catalog import UpstreamEntry
from shared.errors import (
    UpstreamCredentials,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
)
from tests.fakes.anthropic import ScriptedAnthropic, signed
from tests.fakes.upstream import (
    Bytes,
    Chunk,
    End,
    ErrorInBand,
    Finish,
    Headers,
    Reasoning,
    Reset,
    Say,
    Stall,
    Status,
    Step,
    Tool,
    Usage,
)
from tests.hearing import HASTY, KEY, PATIENT, Heard, failure, hear, opened
from workers.upstreams.anthropic import AnthropicUpstream
from workers.upstreams.protocol import Timeouts

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Say it again"}]}
OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}


@pytest.fixture(scope="module")
def fake() -> Iterator[ScriptedAnthropic]:
    """One scripted server for all tests here."""
    with ScriptedAnthropic() as upstream:
        yield upstream


def at(base_url: str, **options: Any) -> UpstreamEntry:
    """The catalogue's entry for a server there."""
    return UpstreamEntry(dialect="anthropic", base_url=base_url, **options)


def ask(fake: ScriptedAnthropic, model: str, *, timeouts: Timeouts = PATIENT, **more: Any) -> Heard:
    """One call from beginning to end."""
    return hear(
        AnthropicUpstream,
        at(fake.base_url, headers={"anthropic-beta": "of-next-year"}, query={"beta": "true"}),
        ASKED | more,
        model=model,
        timeouts=timeouts,
        max_output_tokens=4_096,
    )


def told(kind: str, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error, "request_id": "req_1"}


# Our request out, its stream in.


def test_a_call_is_made_as_anthropic_expects_it(fake: ScriptedAnthropic) -> None:
    """Its own headers, what the catalogue adds to them, and the limit it must be told."""
    ask(fake, "request", system=[{"type": "text", "text": "Be kind."}])

    call = fake.calls_of("request")[0]
    assert call.target == "/v1/messages?beta=true"
    assert call.headers["x-api-key"] == KEY
    assert call.headers["anthropic-version"] == "2023-06-01"
    assert call.headers["anthropic-beta"] == "of-next-year"
    assert "Authorization" not in call.headers
    assert call.body == {
        "model": "request",
        "max_tokens": 4_096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Say it again"}]}],
        "stream": True,
        "system": [{"type": "text", "text": "Be kind."}],
    }


def test_an_answer_is_heard_whole(fake: ScriptedAnthropic) -> None:
    """Thoughts with their signature, words, tool calls, the reason it ended, and each token."""
    fake.script(
        "everything",
        Usage(11, 7, {"cache_read_input_tokens": 20, "cache_creation_input_tokens": 3}),
        Reasoning("I wonder why"),
        signed("c2lnbmVk"),
        Say("Hello there"),
        Tool("look", '{"where": "über"}', id="toolu_a"),
        Tool("sum", "", id="toolu_b", index=1),
        Finish("tool_calls"),
    )

    heard = ask(fake, "everything")

    assert heard.error is None
    thought = {"type": "thinking", "thinking": "I wonder why", "signature": "c2lnbmVk"}
    calls = [("toolu_a", "look", '{"where": "über"}'), ("toolu_b", "sum", "{}")]
    assert heard.choices() == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello there",
                "refusal": None,
                "reasoning_content": "I wonder why",
                "thinking_blocks": [thought],
                "tool_calls": [
                    {"id": id, "type": "function", "function": {"name": name, "arguments": text}}
                    for id, name, text in calls
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
            "native_finish_reason": "tool_use",
        }
    ]
    assert heard.usage == {
        "prompt_tokens": 34,
        "completion_tokens": 7,
        "total_tokens": 41,
        "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 3},
    }


def test_the_prompt_is_counted_before_the_first_word(fake: ScriptedAnthropic) -> None:
    """A call that is given up later still knows what its prompt was."""
    fake.script("counted", Usage(11, 7), Say("Half a"), Reset())

    heard = ask(fake, "counted")

    assert heard.deltas[0].usage is not None
    assert heard.deltas[0].usage["prompt_tokens"] == 11


def test_a_refused_request_makes_no_call(fake: ScriptedAnthropic) -> None:
    """What Anthropic cannot do is known before a connection is made."""
    heard = ask(fake, "never-called", n=2)

    assert failure(heard, UpstreamRejected).param == "n"
    assert fake.calls_of("never-called") == []


# Its failures into ours.


@pytest.mark.parametrize(
    "status, error, kind, code",
    [
        (400, told("invalid_request_error", "Bad."), UpstreamRejected, "upstream_rejected"),
        (
            400,
            told("invalid_request_error", "prompt is too long: 9 tokens > 5 maximum"),
            UpstreamRejected,
            "context_length_exceeded",
        ),
        (
            400,
            told("invalid_request_error", "input length and `max_tokens` exceed context limit: 9"),
            UpstreamRejected,
            "context_length_exceeded",
        ),
        (401, told("authentication_error", KEY), UpstreamCredentials, "upstream_credentials"),
        (402, told("billing_error", "Pay."), UpstreamCredentials, "upstream_credentials"),
        (403, told("permission_error", "No."), UpstreamCredentials, "upstream_credentials"),
        (404, told("not_found_error", "model: x"), UpstreamRejected, "upstream_rejected"),
        (413, told("request_too_large", "Too large."), UpstreamRejected, "request_too_large"),
        (429, told("rate_limit_error", "Slow down."), UpstreamRateLimited, "upstream_rate_limited"),
        (500, told("api_error", "Oops."), UpstreamError, "upstream_error"),
        (504, told("timeout_error", "Too slow."), UpstreamError, "upstream_error"),
        (529, told("overloaded_error", "Overloaded"), UpstreamOverloaded, "upstream_overloaded"),
    ],
)
def test_each_refusal_becomes_the_failure_it_means(
    fake: ScriptedAnthropic,
    status: int,
    error: dict[str, Any],
    kind: type[UpstreamError],
    code: str,
) -> None:
    """The request's fault, ours with them, or theirs: only theirs is worth another attempt."""
    fake.script("refused", Status(status, error, {"Retry-After": "7"}))

    refused = failure(ask(fake, "refused"), kind)

    assert refused.code == code
    assert refused.status == (413 if status == 413 else kind.status)
    assert refused.retryable is (kind not in (UpstreamRejected, UpstreamCredentials))
    assert KEY not in refused.message
    if kind in (UpstreamRateLimited, UpstreamOverloaded):
        assert refused.retry_after is not None
        assert refused.retry_after.total_seconds() == 7


@pytest.mark.parametrize("before", [(), (Say("Half a"),)])
@pytest.mark.parametrize(
    "error, kind",
    [
        (OVERLOADED, UpstreamOverloaded),
        ({"type": "rate_limit_error", "message": "Slow down."}, UpstreamRateLimited),
        ({"type": "api_error", "message": f"{KEY} broke"}, UpstreamError),
        ({"type": "invalid_request_error", "message": "Bad."}, UpstreamRejected),
        ({"type": "authentication_error", "message": KEY}, UpstreamCredentials),
        ({"type": "billing_error", "message": "Pay."}, UpstreamCredentials),
    ],
)
def test_an_error_inside_a_stream_is_an_error(
    fake: ScriptedAnthropic,
    before: Sequence[Step],
    error: dict[str, Any],
    kind: type[UpstreamError],
) -> None:
    """Instead of an answer or in the middle of one; what was said before it is heard first."""
    fake.script("in-band", *before, ErrorInBand(error))

    heard = ask(fake, "in-band")

    assert KEY not in failure(heard, kind).message
    assert heard.text == "".join(step.text for step in before if isinstance(step, Say))


@pytest.mark.parametrize(
    "steps",
    [
        (End(),),
        (Headers(), Reset()),
        (Say("Half a"), End()),
        (Say("Half a"), Reset()),
        (Say("All of it"), Finish(), End()),
        (Say("Half a"), Bytes(b'event: message_stop\ndata: {"type": "mess')),
        (Chunk({"type": "message_stop"}), End()),
    ],
)
def test_a_stream_that_ends_without_its_last_event_is_a_failure(
    fake: ScriptedAnthropic, steps: Sequence[Step]
) -> None:
    """Only `message_stop`, after a stop reason, is the end."""
    fake.script("cut-off", *steps)

    assert failure(ask(fake, "cut-off"), UpstreamDisconnected).retryable


@pytest.mark.parametrize(
    "raw", [b"data: nonsense\n\n", b'data: {"type": "content_block_delta"}\n\n', b"data: [1]\n\n"]
)
def test_what_is_not_an_event_is_a_failure(fake: ScriptedAnthropic, raw: bytes) -> None:
    """Never passed over: a lost event would be a wrong answer."""
    fake.script("nonsense", Say("a"), Bytes(raw), Finish())

    failure(ask(fake, "nonsense"), UpstreamError)


def test_once_the_last_event_is_there_a_missing_goodbye_hurts_nobody(
    fake: ScriptedAnthropic,
) -> None:
    """Whatever comes after it, or breaks."""
    last = Chunk({"type": "message_stop"})
    fake.script("no-goodbye", Say("All of it"), Finish(), last, Reset())

    heard = ask(fake, "no-goodbye")

    assert heard.error is None
    assert heard.text == "All of it"


@pytest.mark.parametrize(
    "steps, named",
    [
        ((Stall(),), "no first byte for 0.3 s"),
        ((Say("Half a"), Stall()), "silence for 0.3 s"),
    ],
)
def test_a_silent_upstream_is_given_up_and_left(
    fake: ScriptedAnthropic, steps: Sequence[Step], named: str
) -> None:
    """Which wait was too long is said, and the connection is closed."""
    fake.script("silent", *steps)

    heard = ask(fake, "silent", timeouts=HASTY)

    assert named in failure(heard, UpstreamTimeout).message
    fake.wait_until(lambda fake: fake.calls_of("silent")[-1].finished == "closed_by_client")


def test_closing_the_stream_closes_the_connection(fake: ScriptedAnthropic) -> None:
    """A model that goes on talking to nobody costs money."""

    async def call() -> float:
        async with (
            opened(AnthropicUpstream, at(fake.base_url)) as upstream,
            aclosing(upstream.stream(ASKED, model="stall-3", max_output_tokens=5)) as stream,
        ):
            await anext(stream)
            await stream.aclose()
            left = time.monotonic()
            await asyncio.to_thread(
                fake.wait_until, lambda fake: fake.calls_of("stall-3")[-1].finished
            )
            return left

    left = uvloop.run(call())

    seen = fake.calls_of("stall-3")[-1]
    assert seen.finished == "closed_by_client"
    assert seen.closed_at is not None
    assert seen.closed_at - left < 1
