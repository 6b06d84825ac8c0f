"""A server that speaks OpenAI's dialect, called over a real connection."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import timedelta
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

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
    ScriptedUpstream,
    Stall,
    Status,
    Step,
    Tool,
    Usage,
    Wait,
    WaitFor,
    Whole,
)
from tests.hearing import HASTY, KEY, PATIENT, Heard, failure, hear, listen, opened
from workers.upstreams.connections import Connections
from workers.upstreams.openai import OpenAIUpstream
from workers.upstreams.protocol import Delta, Timeouts

THEIR_TIME = "Wed, 21 Oct 2015 07:28:00 GMT"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Say it again"}]}


@pytest.fixture(scope="module")
def fake() -> Iterator[ScriptedUpstream]:
    """One scripted server for all tests here."""
    with ScriptedUpstream() as upstream:
        yield upstream


def at(base_url: str, **options: Any) -> UpstreamEntry:
    """The catalogue's entry for a server there."""
    return UpstreamEntry(dialect="openai", base_url=base_url, **options)


def ask(
    base_url: str,
    model: str,
    *,
    timeouts: Timeouts = PATIENT,
    api_key: str | None = KEY,
    **more: Any,
) -> Heard:
    """One call from beginning to end."""
    return hear(
        OpenAIUpstream,
        at(base_url),
        ASKED | more,
        model=model,
        timeouts=timeouts,
        api_key=api_key,
    )


# Our request out.


def test_the_request_passes_unchanged_but_for_model_and_streaming(fake: ScriptedUpstream) -> None:
    """Fields nobody here knows pass too; usage is always asked for."""
    odd: dict[str, Any] = {
        "n": 1,
        "tools": [{"type": "odd"}],
        "of_next_year": {"a": [1.5, None]},
        "stream": False,
    }
    ask(fake.base_url, "request", **odd, stream_options={"include_obfuscation": False})

    call = fake.calls_of("request")[0]
    options = {"include_obfuscation": False, "include_usage": True}
    ours = {"model": "request", "stream": True, "stream_options": options}
    assert call.body == ASKED | odd | ours
    assert call.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "asked, sent",
    [
        ({}, {"max_completion_tokens": 50}),
        ({"max_tokens": 40}, {"max_tokens": 40}),
        ({"max_tokens": 9_000}, {"max_tokens": 50}),
        (
            {"max_completion_tokens": 60, "max_tokens": 7},
            {"max_completion_tokens": 50, "max_tokens": 7},
        ),
    ],
)
def test_no_more_is_asked_for_than_was_reckoned_with(
    fake: ScriptedUpstream, asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Whatever the request says, and if it says nothing."""
    hear(OpenAIUpstream, at(fake.base_url), ASKED | asked, model="most", max_output_tokens=50)

    body = fake.calls_of("most")[-1].body
    assert {
        name: body[name] for name in ("max_completion_tokens", "max_tokens") if name in body
    } == sent


def test_an_upstream_without_a_key_gets_no_authorization(fake: ScriptedUpstream) -> None:
    """The embedded model has none."""
    ask(fake.base_url, "no-key", api_key=None)

    assert "Authorization" not in fake.calls_of("no-key")[0].headers


def test_azure_has_the_deployment_in_its_path_and_the_key_in_a_header_of_its_own(
    fake: ScriptedUpstream,
) -> None:
    """`api_version` in the catalogue makes it Azure."""
    entry = at(fake.base_url.replace("/v1", "/openai"), api_version="2024-10-21")

    heard = hear(OpenAIUpstream, entry, ASKED, model="gpt 4/o")

    call = fake.calls_of("gpt 4/o")[0]
    assert heard.error is None
    assert call.target == (
        "/openai/deployments/gpt%204%2Fo/chat/completions?api-version=2024-10-21"
    )
    assert call.headers["api-key"] == KEY
    assert "Authorization" not in call.headers


def test_the_catalogue_may_add_headers_and_a_query(fake: ScriptedUpstream) -> None:
    """OpenRouter wants to know who calls."""
    entry = at(fake.base_url, headers={"X-Title": "Sluice"}, query={"a": "b c"})

    hear(OpenAIUpstream, entry, ASKED, model="options")

    call = fake.calls_of("options")[0]
    assert call.target == "/v1/chat/completions?a=b+c"
    assert call.headers["X-Title"] == "Sluice"
    assert call.headers["Authorization"] == f"Bearer {KEY}"


# Its stream in.


def test_what_is_streamed_is_what_the_same_upstream_answers_unstreamed(
    fake: ScriptedUpstream,
) -> None:
    """Two choices, tool calls, reasoning, log probabilities, usage: equal to the whole answer."""
    fake.script(
        "everything",
        Reasoning("I wonder why"),
        Say("Hello there", logprobs=True),
        Tool("look", '{"where": "über"}', id="call_a"),
        Say("Other words", choice=1),
        Tool("sum", "{}", id="call_b", index=1),
        Finish("tool_calls"),
        Finish("length", choice=1),
        Usage(11, 7, {"completion_tokens_details": {"reasoning_tokens": 3}}),
    )

    async def whole() -> dict[str, Any]:
        async with aiohttp.ClientSession() as session:
            url = fake.base_url + "/chat/completions"
            async with session.post(url, json={"model": "everything", **ASKED}) as response:
                answer: dict[str, Any] = await response.json()
                return answer

    heard = ask(fake.base_url, "everything", n=2)

    expected = uvloop.run(whole())
    assert heard.error is None
    assert heard.choices() == expected["choices"]
    assert heard.usage == expected["usage"]


def test_each_delta_keeps_its_chunk_as_json_without_what_we_say_ourselves(
    fake: ScriptedUpstream,
) -> None:
    """A line is the chunk; id, object, created, model, usage and obfuscation are gone."""
    told = {"choices": [{"index": 0, "delta": {"content": "a"}, "odd": 1}], "obfuscation": "xxxx"}
    fake.script("raw", Chunk(told | {"system_fingerprint": "fp"}))

    heard = ask(fake.base_url, "raw")

    first, usage = heard.deltas[0], heard.deltas[-1]
    assert list(map(json.loads, first.lines)) == [
        {"choices": first.choices, "system_fingerprint": "fp"}
    ]
    assert first.extra == {"system_fingerprint": "fp"}
    assert (usage.choices, usage.lines) == ([], [])
    assert usage.usage is not None


def test_usage_is_taken_from_any_chunk(fake: ScriptedUpstream) -> None:
    """llama.cpp reports it with the finish reason."""
    counts = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
    raw = b"data: " + json.dumps({"choices": [ended], "usage": counts}).encode() + b"\n\n"
    fake.script("early-usage", Say("a"), Bytes(raw + b"data: [DONE]\n\n"))

    heard = ask(fake.base_url, "early-usage")

    assert heard.error is None
    assert heard.usage == counts
    assert b"usage" not in b"".join(heard.deltas[-1].lines)


def test_chunks_that_say_nothing_are_dropped_and_filter_results_are_not(
    fake: ScriptedUpstream,
) -> None:
    """Keep-alives have no choices. Azure's first chunk has none either: the next tells its news."""
    filtered = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    idle: dict[str, Any] = {"choices": [], "usage": None, "prompt_filter_results": None}
    fake.script("idle", Chunk(idle), Chunk(filtered), Say("a"), Chunk({"choices": None}), Finish())

    heard = ask(fake.base_url, "idle")

    assert heard.error is None
    told = [json.loads(line) for delta in heard.deltas for line in delta.lines]
    assert [bool(chunk["choices"]) for chunk in told] == [True, True, True]
    assert [chunk.get("prompt_filter_results") for chunk in told] == [
        [{"prompt_index": 0}],
        None,
        None,
    ]


def test_a_server_that_ignores_streaming_is_understood(fake: ScriptedUpstream) -> None:
    """One JSON body becomes one delta of content and one that ends it."""
    fake.script("whole", Whole(), Say("Hello there"), Tool("f", '{"a": 1}'), Finish("tool_calls"))

    heard = ask(fake.base_url, "whole")

    assert heard.error is None
    assert len(heard.deltas) == 2
    assert heard.choices()[0]["finish_reason"] == "tool_calls"
    assert heard.choices()[0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert heard.text == "Hello there"
    assert heard.usage is not None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_where_the_network_cuts_the_stream_changes_nothing(
    fake: ScriptedUpstream, data: st.DataObject
) -> None:
    """Inside a letter, a number, CRLF: the same deltas, whatever came together."""
    words = ["Grüße ", "😀", "\n\n", '"data: [DONE]"']
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    chunks = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    raw = "".join(f"data: {event}{newline}{newline}" for event in [*events, "[DONE]"]).encode()
    places = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    edges = [0, *places, len(raw)]
    fake.script("cuts", *(Bytes(raw[a:b]) for a, b in pairwise(edges)))

    heard = ask(fake.base_url, "cuts")

    assert heard.error is None
    assert heard.text == "".join(words)
    assert [json.loads(line) for delta in heard.deltas for line in delta.lines] == chunks


NAMES = ["content", "role", "function", "custom", "id", "index", "name", "arguments", "error"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=10,
)
ALMOST_A_DELTA = JSON | st.fixed_dictionaries(
    {}, optional={name: JSON for name in ("content", "role", "tool_calls", "function_call")}
)
ALMOST_A_CHOICE = JSON | st.fixed_dictionaries(
    {"delta": ALMOST_A_DELTA},
    optional={name: JSON for name in ("index", "logprobs", "finish_reason", "odd")},
)
ALMOST_A_CHUNK = JSON | st.fixed_dictionaries(
    {"choices": st.lists(ALMOST_A_CHOICE, max_size=2) | JSON}, optional={"usage": JSON}
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ALMOST_A_CHUNK.map(json.dumps).map(str.encode) | st.binary(), max_size=4))
def test_no_answer_however_odd_is_anything_but_deltas_or_an_upstream_failure(
    fake: ScriptedUpstream, lines: list[bytes]
) -> None:
    """Noise and JSON of the wrong shapes: never another exception, never half a transcript."""
    fake.script("noise", *(Bytes(b"data: " + line + b"\n\n") for line in lines), End())

    heard = ask(fake.base_url, "noise")

    heard.choices()
    assert heard.error is None or heard.error.retryable or heard.error.code


# Its failures into ours.


@pytest.mark.parametrize(
    "steps",
    [
        (Say("Half a"), End()),
        (End(),),
        (Say("One"), Finish(), Say("Two", choice=1), End()),
        (Say("One"), Finish(), End()),
        (Say("Half a"), Bytes(b"data: [DONE]\n\n")),
        (Say("Half a"), Bytes(b'data: {"choices": [{"ind')),
        (Say("Half a"), Reset()),
        (Reset(),),
        (Headers(), Reset()),
    ],
)
def test_a_stream_that_ends_without_each_finish_reason_is_a_failure(
    fake: ScriptedUpstream, steps: Sequence[Step]
) -> None:
    """The SDKs call it success; for two choices one reason is not enough."""
    fake.script("cut-off", *steps)

    heard = ask(fake.base_url, "cut-off", n=2)

    assert failure(heard, UpstreamDisconnected).retryable


@pytest.mark.parametrize("ending", [End(), Reset(), Stall()])
def test_once_all_is_said_a_missing_goodbye_hurts_nobody(
    fake: ScriptedUpstream, ending: Step
) -> None:
    """After the finish reason neither `[DONE]` nor a clean end is needed."""
    fake.script("no-goodbye", Say("All of it"), Finish(), ending)

    heard = ask(fake.base_url, "no-goodbye", timeouts=HASTY)

    assert heard.error is None
    assert heard.text == "All of it"


@pytest.mark.parametrize(
    "raw, kind",
    [
        (b'data: {"error": {"message": "boom", "type": "server_error"}}\n\n', UpstreamError),
        (b'data: {"error": "boom"}\n\n', UpstreamError),
        (b'event: error\ndata: {"message": "boom"}\n\n', UpstreamError),
        (b'data: {"choices": [], "error": {"message": "boom", "code": 502}}\n\n', UpstreamError),
        (b'data: {"error": {"message": "boom", "code": "429"}}\n\n', UpstreamRateLimited),
        (
            b'data: {"error": {"message": "boom", "type": "overloaded_error"}}\n\n',
            UpstreamOverloaded,
        ),
        (b'data: {"error": {"message": "boom", "type": "BadRequestError"}}\n\n', UpstreamRejected),
    ],
)
def test_an_error_inside_a_stream_is_an_error(
    fake: ScriptedUpstream, raw: bytes, kind: type[UpstreamError]
) -> None:
    """What was said before it is heard first; its words are in the message."""
    fake.script("in-band", Say("Half a"), Bytes(raw + b"data: [DONE]\n\n"))

    heard = ask(fake.base_url, "in-band")

    assert "boom" in failure(heard, kind).message
    assert heard.text == "Half a"


@pytest.mark.parametrize(
    "raw", [b"data: nonsense\n\n", b"data: [1]\n\n", b'data: {"choices": 1}\n\n']
)
def test_what_is_not_a_chunk_is_a_failure(fake: ScriptedUpstream, raw: bytes) -> None:
    """Never passed over: a lost chunk would be a wrong answer."""
    fake.script("nonsense", Say("a"), Bytes(raw), Finish())

    failure(ask(fake.base_url, "nonsense"), UpstreamError)


def test_an_error_inside_a_stream_does_not_quote_our_key(fake: ScriptedUpstream) -> None:
    """Wherever an upstream repeats it."""
    fake.script("in-band-key", Say("a"), ErrorInBand({"message": f"{KEY} broke"}))

    error = failure(ask(fake.base_url, "in-band-key"), UpstreamError)

    assert error.message == "The upstream failed: [key] broke"


def test_a_finish_reason_of_error_is_a_failure(fake: ScriptedUpstream) -> None:
    """Some gateways end a broken stream so; the SDKs call it success."""
    fake.script("finish-error", Say("Half a"), Finish("error"))

    failure(ask(fake.base_url, "finish-error"), UpstreamError)


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, UpstreamRejected),
        (404, UpstreamRejected),
        (413, UpstreamRejected),
        (422, UpstreamRejected),
        (401, UpstreamCredentials),
        (402, UpstreamCredentials),
        (403, UpstreamCredentials),
        (408, UpstreamError),
        (409, UpstreamError),
        (429, UpstreamRateLimited),
        (500, UpstreamError),
        (502, UpstreamError),
        (503, UpstreamOverloaded),
        (529, UpstreamOverloaded),
    ],
)
def test_each_status_becomes_the_failure_it_means(
    fake: ScriptedUpstream, status: int, kind: type[UpstreamError]
) -> None:
    """The request's fault, ours with them, or theirs: only theirs is worth another attempt."""
    heard = ask(fake.base_url, f"status-{status}")

    error = failure(heard, kind)
    assert error.retryable is (kind not in (UpstreamRejected, UpstreamCredentials))
    assert f"{status}" in error.message
    assert error.status == (413 if status == 413 else kind.status)


@pytest.mark.parametrize(
    "told, code, param",
    [
        ({"message": "Bad.", "param": "tools", "code": "bad_tool"}, "bad_tool", "tools"),
        (
            {"message": "Too big.", "code": "context_length_exceeded"},
            "context_length_exceeded",
            None,
        ),
        ({"message": "Bad.", "code": 400, "param": 7}, "upstream_rejected", None),
        (
            {"message": "the request exceeds the available context size", "code": 400},
            "context_length_exceeded",
            None,
        ),
    ],
)
def test_a_rejection_says_in_the_upstreams_words_what_is_wrong(
    fake: ScriptedUpstream, told: dict[str, Any], code: str, param: str | None
) -> None:
    """Message, param and code reach the caller."""
    fake.script("rejected", Status(400, {"error": told}))

    error = failure(ask(fake.base_url, "rejected"), UpstreamRejected)

    assert told["message"] in error.message
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "7", "retry-after-ms": "1500"}, 1.5),
        ({"Retry-After": "Wed, 21 Oct 2015 08:28:00 GMT", "Date": THEIR_TIME}, 3600.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:00:00 GMT", "Date": THEIR_TIME}, 0.0),
        ({"Retry-After": "1e400"}, 86_400.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_the_pause_an_upstream_asks_for_is_kept(
    fake: ScriptedUpstream, headers: dict[str, str], seconds: float | None
) -> None:
    """In seconds, milliseconds, or as a date by its own clock; nonsense is no pause."""
    fake.script("paused", Status(429, headers=headers))

    error = failure(ask(fake.base_url, "paused"), UpstreamRateLimited)

    asked = error.retry_after.total_seconds() if error.retry_after is not None else None
    assert asked == seconds


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
def test_no_message_carries_our_key_or_an_endless_body(fake: ScriptedUpstream, status: int) -> None:
    """An upstream that quotes the key back, at length, is quoted without it and cut."""
    fake.script("leaky", Status(status, f"{KEY} is wrong. {'x' * 200_000}".encode()))

    heard = ask(fake.base_url, "leaky")

    assert heard.error is not None
    assert KEY not in heard.error.message
    assert len(heard.error.message) < 2_100


def test_a_redirect_is_not_followed(fake: ScriptedUpstream) -> None:
    """It would carry the prompt, and perhaps the key, to another address."""
    there = fake.base_url + "/chat/completions"
    fake.script("moved", Status(307, headers={"Location": there}))

    failure(ask(fake.base_url, "moved"), UpstreamError)

    assert len(fake.calls_of("moved")) == 1


def test_a_server_that_is_not_there_is_disconnected() -> None:
    """Nobody listens on a port that was just given back; no address is told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    error = failure(ask(f"http://127.0.0.1:{port}/v1", "m"), UpstreamDisconnected)

    assert error.message == "No connection to the upstream: Connection refused."


# Time.


@pytest.mark.parametrize(
    "steps, named",
    [
        ((Stall(),), "no first byte for 0.3 s"),
        ((Headers(), Stall()), "no first byte for 0.3 s"),
        ((Say("Half a"), Stall()), "silence for 0.3 s"),
        ((Bytes(b": ping\n\n"), Stall()), "silence for 0.3 s"),
    ],
)
def test_a_silent_upstream_is_given_up_and_left(
    fake: ScriptedUpstream, steps: Sequence[Step], named: str
) -> None:
    """Which wait was too long is said, and the connection is closed."""
    fake.script("silent", *steps)
    before = time.monotonic()

    heard = ask(fake.base_url, "silent", timeouts=HASTY)

    assert named in failure(heard, UpstreamTimeout).message
    assert 0.25 < time.monotonic() - before < 3
    fake.wait_until(lambda fake: fake.calls_of("silent")[-1].finished == "closed_by_client")


def test_an_upstream_that_keeps_talking_is_never_silent(fake: ScriptedUpstream) -> None:
    """A stream may last many times longer than a silence may."""
    fake.script("slow", Say("word " * 12, every=0.06))

    heard = ask(fake.base_url, "slow", timeouts=HASTY)

    assert heard.error is None


def test_a_connection_that_nobody_accepts_times_out() -> None:
    """A full backlog: the connection is never made, and that is what is said."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        timeouts = Timeouts(timedelta(seconds=0.3), timedelta(seconds=5), timedelta(seconds=5))
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())

        heard = ask(url, "m", timeouts=timeouts)

        for one in waiting:
            one.close()
    assert "no connection for 0.3 s" in failure(heard, UpstreamTimeout).message


def test_a_reader_that_takes_its_time_is_not_the_upstreams_silence(fake: ScriptedUpstream) -> None:
    """While the publisher holds back the reads, no clock runs against the upstream."""

    def is_done(fake: ScriptedUpstream) -> bool:
        return fake.calls_of("say-60-d10ms")[-1].finished == "done"

    async def dawdle() -> int:
        async with (
            opened(OpenAIUpstream, at(fake.base_url), HASTY) as upstream,
            aclosing(upstream.stream(ASKED, model="say-60-d10ms")) as stream,
        ):
            lines = [line for _ in range(2) for each in await anext(stream) for line in each.lines]
            await asyncio.to_thread(fake.wait_until, is_done)
            async for deltas in stream:
                lines += [line for each in deltas for line in each.lines]
            return len(lines)

    assert uvloop.run(dawdle()) == 62


def test_a_connection_that_breaks_while_its_reader_is_busy_is_noticed_afterwards(
    fake: ScriptedUpstream,
) -> None:
    """Nobody reads meanwhile, so nobody hears of it; what was said before it may be heard."""
    fake.script("brief", Say("One two", every=0.02), Reset())

    async def look_away() -> str | None:
        async with opened(OpenAIUpstream, at(fake.base_url)) as upstream:
            stream = upstream.stream(ASKED, model="brief")
            await anext(stream)
            await asyncio.to_thread(
                fake.wait_until, lambda fake: fake.calls_of("brief")[-1].finished
            )
            try:
                async for _ in stream:
                    pass
            except UpstreamDisconnected as error:
                return error.code
        return None

    assert uvloop.run(look_away()) == "upstream_disconnected"


# Cancelling.


async def leave(stream: AsyncGenerator[list[Delta], None]) -> None:
    """Hear one delta and close."""
    await anext(stream)
    await stream.aclose()


async def be_cancelled(stream: AsyncGenerator[list[Delta], None]) -> None:
    """Be cancelled while waiting for more."""
    heard = asyncio.Event()

    async def drain() -> None:
        async with aclosing(stream):
            async for deltas in stream:
                if any(b"word" in line for delta in deltas for line in delta.lines):
                    heard.set()

    task = asyncio.create_task(drain())
    await asyncio.wait_for(heard.wait(), 5)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("how", [leave, be_cancelled])
def test_closing_the_stream_closes_the_connection_at_once(
    fake: ScriptedUpstream, how: Callable[[AsyncGenerator[list[Delta], None]], Awaitable[None]]
) -> None:
    """A model that goes on talking to nobody costs money: it hears of it within a second."""

    async def call() -> float:
        async with opened(OpenAIUpstream, at(fake.base_url)) as upstream:
            await how(upstream.stream(ASKED, model="stall-3"))
            left = time.monotonic()
            await asyncio.to_thread(
                fake.wait_until, lambda fake: fake.calls_of("stall-3")[-1].finished
            )
            return left

    left = uvloop.run(call())

    call_seen = fake.calls_of("stall-3")[-1]
    assert call_seen.finished == "closed_by_client"
    assert call_seen.closed_at is not None
    assert call_seen.closed_at - left < 1


def test_a_call_can_be_given_up_before_the_first_byte(fake: ScriptedUpstream) -> None:
    """Also a model that has not begun to answer is let go."""
    fake.script("mute", Stall())

    async def call() -> None:
        async with opened(OpenAIUpstream, at(fake.base_url)) as upstream:
            task = asyncio.create_task(listen(upstream, ASKED, model="mute"))
            await asyncio.to_thread(fake.wait_until, lambda fake: fake.calls_of("mute"))
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(
                fake.wait_until, lambda fake: fake.calls_of("mute")[-1].finished, 1.0
            )

    uvloop.run(call())

    assert fake.calls_of("mute")[-1].finished == "closed_by_client"


def test_a_connection_that_was_read_to_its_end_is_used_again(fake: ScriptedUpstream) -> None:
    """Ten calls one after another need one connection, though the body ends after `[DONE]`."""
    fake.script("late-end", Say("a"), Finish(), Bytes(b"data: [DONE]\n\n"), Wait(0.01), End())

    async def call() -> int:
        with Connections() as connections:
            entry = at(fake.base_url)
            upstream = OpenAIUpstream(connections, entry, api_key=None, timeouts=PATIENT)
            for _ in range(10):
                assert (await listen(upstream, ASKED, model="late-end")).error is None
            return connections.made

    assert uvloop.run(call()) == 1


def test_hundreds_of_streams_run_side_by_side(fake: ScriptedUpstream) -> None:
    """Each hears its own words, all of them."""

    async def call() -> list[Heard]:
        async with opened(OpenAIUpstream, at(fake.base_url)) as upstream:
            asked = [
                ASKED | {"messages": [{"role": "user", "content": f"I am number {number}"}]}
                for number in range(300)
            ]
            return await asyncio.gather(*(listen(upstream, one, model="echo") for one in asked))

    heard = uvloop.run(call())

    assert [one.text for one in heard] == [f"I am number {number}" for number in range(300)]


def test_a_word_is_heard_before_the_next_is_said(fake: ScriptedUpstream) -> None:
    """Nothing waits for company: a delta leaves the adapter as it arrives."""
    heard = [threading.Event() for _ in range(3)]
    fake.script("polite", *(step for each in heard for step in (Say("Yes."), WaitFor(each))))

    async def answer() -> list[str]:
        said = []
        async with (
            opened(OpenAIUpstream, at(fake.base_url)) as upstream,
            aclosing(upstream.stream(ASKED, model="polite")) as stream,
        ):
            for each in heard:
                said.append((await anext(stream))[-1].choices[0]["delta"]["content"])
                each.set()
        return said

    assert uvloop.run(answer()) == ["Yes."] * 3


def test_the_scripted_upstream_tells_other_processes_what_it_was_asked(
    fake: ScriptedUpstream,
) -> None:
    """`GET /calls` lists the calls with their endings, for tests that start it as a process."""
    ask(fake.base_url, "say-2")

    async def listed() -> list[dict[str, Any]]:
        url = fake.base_url.removesuffix("/v1") + "/calls"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            calls: list[dict[str, Any]] = await response.json()
            return calls

    call = next(call for call in uvloop.run(listed()) if call["model"] == "say-2")
    assert (call["finished"], call["body"]["stream"]) == ("done", True)
    assert call["headers"]["Authorization"] == f"Bearer {KEY}"
