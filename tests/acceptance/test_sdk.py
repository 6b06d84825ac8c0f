"""Five versions of the official OpenAI SDKs, retries and all, against real processes.

The newest openai-python meets both databases, the others SQLite; none knows that it is not OpenAI.
"""

import functools
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.fakes.upstream import (
    Chunk,
    End,
    ErrorInBand,
    Finish,
    Reasoning,
    Say,
    Stall,
    Status,
    Step,
    Tool,
    Wait,
    WaitFor,
)
from tests.sdks import SDKS, Application
from tests.stack import Stack, eventually

MATRIX = [*(("sqlite", sdk) for sdk in SDKS), ("postgresql", SDKS[-1])]
HELLO = [{"role": "user", "content": "Say hello"}]
WORDS = "one two three four five"
UNKNOWN = "chatcmpl-" + "0" * 26

Applications = Callable[[str], Application]
Body = dict[str, Any]

each_sdk = pytest.mark.parametrize("service, sdk", MATRIX, indirect=True, scope="module")


@pytest.fixture(scope="module")
def applications() -> Iterator[Applications]:
    """The application of an SDK, started when first asked for."""
    with ExitStack() as started:
        yield functools.cache(lambda sdk: started.enter_context(Application(sdk)))


class Sdk:
    """An application of an SDK, pointed at a service."""

    def __init__(self, application: Application, service: Stack) -> None:
        self._application = application
        self._there = {"base_url": f"{service.url}/v1", "key": service.key}

    def ask(self, form: str, **asked: Any) -> None:
        """Begin a form."""
        self._application.ask(form, **{**self._there, **asked})

    def answer(self) -> dict[str, Any]:
        """What came of it."""
        return self._application.answer()

    def __call__(self, form: str, **asked: Any) -> dict[str, Any]:
        """Perform a form."""
        self.ask(form, **asked)
        return self.answer()


@pytest.fixture(scope="module")
def sdk(request: pytest.FixtureRequest, service: Stack, applications: Applications) -> Sdk:
    """The SDK that the parameter names, pointed at the service of the module."""
    return Sdk(applications(request.param), service)


@pytest.fixture(scope="module")
def http(service: Stack) -> httpx.Client:
    """A plain client, to look at what the SDK has done."""
    return service.http()


@pytest.fixture
def body() -> Body:
    """A request whose jobs can be told from those of other tests by their metadata."""
    return {"model": "test", "messages": HELLO, "metadata": {"run": uuid.uuid4().hex}}


def jobs_of(http: httpx.Client, body: Body) -> list[dict[str, Any]]:
    """The jobs that a body was sent for, newest first."""
    found = http.get("/v1/jobs", params={"metadata[run]": body["metadata"]["run"]})
    jobs: list[dict[str, Any]] = found.json()["data"]
    return jobs


def text_of(chunks: list[dict[str, Any]], index: int = 0, name: str = "content") -> str:
    """What a choice of a stream says."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(each["delta"].get(name) or "" for each in choices if each["index"] == index)


def finish_reasons(chunks: list[dict[str, Any]]) -> list[str]:
    """Why the choices of a stream ended."""
    reasons = [choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"]]
    return [reason for reason in reasons if reason]


@each_sdk
def test_a_held_completion_answers_like_openai(service: Stack, sdk: Sdk, body: Body) -> None:
    """The plainest call there is."""
    service.upstream.script("test", Say(WORDS))

    seen = sdk("create", body=body)

    completion = seen["completion"]
    assert seen["status"] == 200
    assert completion["id"].startswith("chatcmpl-")
    assert (completion["object"], completion["model"]) == ("chat.completion", "test")
    assert completion["choices"][0]["message"]["content"] == WORDS
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"]["completion_tokens"] == 5
    assert seen["headers"]["x-request-id"].startswith("req_")


@each_sdk
def test_a_stream_says_what_is_stored(service: Stack, sdk: Sdk, body: Body) -> None:
    """The streamed text equals the stored result, and usage comes only to who asked."""
    service.upstream.script("test", Say(WORDS, every=0.005))

    chunks = sdk("stream", body=body)["chunks"]

    stored = sdk("retrieve", id=chunks[0]["id"])["completion"]
    assert text_of(chunks) == stored["choices"][0]["message"]["content"] == WORDS
    assert finish_reasons(chunks) == ["stop"]
    assert stored["status"] == "completed"
    assert {(chunk["id"], chunk["model"]) for chunk in chunks} == {(stored["id"], "test")}
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in chunks)


@each_sdk
def test_usage_comes_last_when_it_was_asked_for(service: Stack, sdk: Sdk, body: Body) -> None:
    """One more chunk, without choices."""
    service.upstream.script("test", Say(WORDS))

    chunks = sdk("stream", body=body | {"stream_options": {"include_usage": True}})["chunks"]

    stored = sdk("retrieve", id=chunks[0]["id"])["completion"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == stored["usage"]
    assert stored["usage"]["total_tokens"] == 7
    assert not any(chunk.get("usage") for chunk in chunks[:-1])


@each_sdk
def test_in_the_background_it_is_accepted_and_polled(service: Stack, sdk: Sdk, body: Body) -> None:
    """202 is a completion without choices; `Prefer: wait` makes of polling one long breath."""
    go = threading.Event()
    service.upstream.script("test", WaitFor(go), Say(WORDS))

    seen = sdk("create", body=body | {"background": True})
    accepted = seen["completion"]
    sdk.ask("poll", id=accepted["id"])
    go.set()
    polled = sdk.answer()

    assert seen["status"] == 202
    assert seen["headers"]["location"] == f"/v1/chat/completions/{accepted['id']}"
    assert int(seen["headers"]["retry-after"]) > 0
    assert accepted["choices"] == []
    assert accepted["status"] in ("queued", "in_progress")
    assert polled["polls"] == 1
    assert polled["completion"]["status"] == "completed"
    assert polled["completion"]["choices"][0]["message"]["content"] == WORDS


@each_sdk
def test_a_caller_may_wait_a_little_before_it_polls(service: Stack, sdk: Sdk, body: Body) -> None:
    """`Prefer: respond-async, wait=n` is the answer if it comes in time, else the 202."""
    go = threading.Event()
    service.upstream.script_calls("test", (Say(WORDS),), (WaitFor(go), Say(WORDS)))

    in_time = sdk("create", body=body, headers={"Prefer": "respond-async, wait=10"})
    late = sdk("create", body=body, headers={"Prefer": "respond-async, wait=0.2"})

    go.set()
    assert (in_time["status"], in_time["completion"]["choices"][0]["finish_reason"]) == (
        200,
        "stop",
    )
    assert late["status"] == 202
    assert late["headers"]["preference-applied"] == "respond-async"
    assert sdk("poll", id=late["completion"]["id"])["completion"]["status"] == "completed"


@each_sdk
def test_an_impatient_client_is_told_to_poll_and_submits_once(
    service: Stack, sdk: Sdk, http: httpx.Client, body: Body
) -> None:
    """Its 504 comes before its own timeout, the SDK does not try again, and the job goes on."""
    go = threading.Event()
    service.upstream.script("test", WaitFor(go), Say(WORDS))

    raised = sdk("create", body=body, timeout=1.5)["raised"]

    [job] = jobs_of(http, body)
    go.set()
    assert (raised["class"], raised["status"]) == ("InternalServerError", 504)
    assert raised["code"] == "sync_wait_exceeded"
    assert job["status"] == "in_progress"
    assert sdk("poll", id=job["id"])["completion"]["status"] == "completed"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_sdk_bears_many_heartbeats(
    idle_stack: Stack, applications: Applications, body: Body
) -> None:
    """A silence of eight heartbeats, first before anything was said and then in mid-stream."""
    idle_stack.upstream.script("test", Wait(2), Say("before"), Wait(2), Say(" after"))

    everybody = [Sdk(applications(name), idle_stack) for name in SDKS]
    for sdk in everybody:
        sdk.ask("stream", body=body)
    said = [text_of(sdk.answer()["chunks"]) for sdk in everybody]

    assert said == ["before after"] * len(SDKS)


@pytest.fixture
def idle_stack(stack: Stack) -> Stack:
    """A service whose heart beats every half second."""
    stack.environment["SLUICE_HEARTBEAT"] = "PT0.5S"
    return stack.up()


@each_sdk
@pytest.mark.parametrize(
    "ending, code", [(ErrorInBand(), "upstream_error"), (End(), "upstream_disconnected")]
)
def test_a_failure_in_mid_stream_raises(
    service: Stack, sdk: Sdk, http: httpx.Client, body: Body, ending: Step, code: str
) -> None:
    """A stream that cannot go on does not pass for a short answer."""
    service.upstream.script("test", Say("one two"), ending)

    seen = sdk("stream", body=body)

    assert text_of(seen["chunks"]) == "one two"
    assert (seen["raised"]["class"], seen["raised"]["code"]) == ("APIError", code)
    assert [job["status"] for job in jobs_of(http, body)] == ["failed"]


REJECTED = {"message": "Too hot.", "type": "invalid_request_error", "param": "temperature"}


@each_sdk
@pytest.mark.parametrize("form", ["create", "stream"])
@pytest.mark.parametrize(
    "answer, told",
    [
        (Status(400, {"error": REJECTED}), ("BadRequestError", 400, "temperature")),
        (Status(401), ("InternalServerError", 503, None)),
    ],
    ids=["rejected", "our-key-refused"],
)
def test_an_early_failure_has_a_status_and_is_not_retried(
    service: Stack,
    sdk: Sdk,
    http: httpx.Client,
    body: Body,
    form: str,
    answer: Status,
    told: tuple[str, int, str | None],
) -> None:
    """Before the first word a stream fails as a plain call does; one job, one call."""
    service.upstream.script("test", answer)
    calls = len(service.upstream.calls)

    raised = sdk(form, body=body)["raised"]

    assert (raised["class"], raised["status"], raised["param"]) == told
    assert raised["code"] in ("upstream_rejected", "upstream_credentials")
    assert [job["status"] for job in jobs_of(http, body)] == ["failed"]
    assert len(service.upstream.calls) == calls + 1


@each_sdk
def test_a_running_job_is_cancelled(
    service: Stack, sdk: Sdk, http: httpx.Client, body: Body
) -> None:
    """The SDK's empty POST is enough; what was being said stops at its source."""
    service.upstream.script("test", Say("one two"), Stall())
    completion_id = sdk("create", body=body | {"background": True})["completion"]["id"]
    eventually(lambda: http.get(f"/v1/jobs/{completion_id}").json()["progress"]["deltas"])

    asked = sdk("cancel", id=completion_id)["completion"]
    again = sdk("cancel", id=completion_id)["completion"]

    ended = sdk("poll", id=completion_id)["completion"]
    assert {asked["status"], again["status"]} <= {"cancelling", "cancelled"}
    assert (ended["status"], ended["choices"]) == ("cancelled", [])
    service.upstream.wait_until(lambda up: up.calls[-1].finished == "closed_by_client")


@each_sdk
def test_a_list_is_filtered_and_paged(
    service: Stack, sdk: Sdk, http: httpx.Client, body: Body
) -> None:
    """Five completions of one run in pages of two, oldest first, and none of another run."""
    service.upstream.script("test", Say("Yes."))
    submitted = http.post("/v1/jobs", json=[body] * 5).json()["data"]
    sdk("create", body=body | {"metadata": {"run": "other"}})
    for job in submitted:
        sdk("poll", id=job["id"])

    listed = sdk("list", query={"metadata": body["metadata"], "limit": 2})["ids"]

    assert listed == [job["id"].replace("job_", "chatcmpl-") for job in submitted]


@each_sdk
def test_metadata_is_replaced(service: Stack, sdk: Sdk, http: httpx.Client, body: Body) -> None:
    """The new pairs are shown and found, the old ones are gone."""
    service.upstream.script("test", Say("Yes."))
    completion_id = sdk("create", body=body)["completion"]["id"]
    new = {"run": body["metadata"]["run"] + "-renamed"}

    updated = sdk("update", id=completion_id, metadata=new)["completion"]

    assert updated["metadata"] == new
    assert sdk("retrieve", id=completion_id)["completion"]["metadata"] == new
    assert sdk("list", query={"metadata": new})["ids"] == [completion_id]
    assert jobs_of(http, body) == []


@each_sdk
def test_a_deleted_completion_is_gone(service: Stack, sdk: Sdk, body: Body) -> None:
    """Like one that never was."""
    service.upstream.script("test", Say("Yes."))
    completion_id = sdk("create", body=body)["completion"]["id"]

    deleted = sdk("delete", id=completion_id)["deleted"]

    gone, never = sdk("retrieve", id=completion_id), sdk("retrieve", id=UNKNOWN)
    assert (deleted["id"], deleted["deleted"]) == (completion_id, True)
    assert gone["raised"]["class"] == never["raised"]["class"] == "NotFoundError"
    assert gone["raised"]["code"] == never["raised"]["code"] == "not_found"


@each_sdk
def test_the_messages_of_a_completion_are_listed(service: Stack, sdk: Sdk, body: Body) -> None:
    """As they were sent, page by page, each with an id of its own."""
    service.upstream.script("test", Say("Yes."))
    sent = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "user", "content": "Now!"}]
    completion_id = sdk("create", body=body | {"messages": sent})["completion"]["id"]

    found = sdk("messages", id=completion_id, limit=2)["messages"]

    assert [{key: each[key] for key in ("role", "content")} for each in found] == sent
    assert len({message["id"] for message in found}) == 3


@each_sdk
def test_models_are_offered(sdk: Sdk) -> None:
    """The catalogue, in OpenAI's shape and a little more."""
    seen = sdk("models", name="test")

    assert {"test", "test-0"} <= set(seen["names"])
    assert (seen["model"]["id"], seen["model"]["object"]) == ("test", "model")
    assert seen["model"]["context_window"] == 8192
    assert seen["model"]["available"] is True
    assert sdk("models", name="nobody")["raised"]["class"] == "NotFoundError"


@each_sdk
def test_tool_calls_arrive_whole(service: Stack, sdk: Sdk, body: Body) -> None:
    """Held as they are, streamed in the pieces the model spoke in."""
    arguments = '{"city": "Oslo", "days": 3}'
    service.upstream.script("test", Tool("weather", arguments), Finish("tool_calls"))
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

    held = sdk("create", body=body | {"tools": [tool]})["completion"]["choices"][0]
    chunks = sdk("stream", body=body | {"tools": [tool]})["chunks"]

    [call] = held["message"]["tool_calls"]
    deltas = [chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks]
    pieces = [delta[0]["function"] for delta in deltas if delta]
    assert held["finish_reason"] == "tool_calls"
    assert finish_reasons(chunks) == ["tool_calls"]
    assert (call["id"], call["function"]) == ("call_1", {"name": "weather", "arguments": arguments})
    assert pieces[0]["name"] == "weather"
    assert "".join(piece["arguments"] for piece in pieces) == arguments
    assert service.upstream.calls[-1].body["tools"] == [tool]


@each_sdk
def test_two_choices_are_kept_apart(service: Stack, sdk: Sdk, body: Body) -> None:
    """`n=2`, spoken in turns."""
    turns = [Say("left"), Say("right", choice=1), Say(" hand"), Say(" foot", choice=1)]
    service.upstream.script("test", *turns)

    held = sdk("create", body=body | {"n": 2})["completion"]["choices"]
    chunks = sdk("stream", body=body | {"n": 2})["chunks"]

    assert [choice["message"]["content"] for choice in held] == ["left hand", "right foot"]
    assert [text_of(chunks, 0), text_of(chunks, 1)] == ["left hand", "right foot"]
    assert finish_reasons(chunks) == ["stop", "stop"]


@each_sdk
def test_logprobs_survive(service: Stack, sdk: Sdk, body: Body) -> None:
    """A probability for each token, held and streamed."""
    service.upstream.script("test", Say("one two", logprobs=True))

    held = sdk("create", body=body | {"logprobs": True})["completion"]["choices"][0]
    chunks = sdk("stream", body=body | {"logprobs": True})["chunks"]

    said = [chunk["choices"][0].get("logprobs") for chunk in chunks]
    streamed = [token for each in said if each for token in each["content"]]
    assert [token["token"] for token in streamed] == ["one", " two"]
    assert streamed == held["logprobs"]["content"]


@each_sdk
def test_reasoning_and_unknown_fields_survive(service: Stack, sdk: Sdk, body: Body) -> None:
    """What OpenAI's wire has no name for is passed on."""
    odd = Chunk({"system_fingerprint": "fp_1", "choices": [{"index": 0, "delta": {"mood": "gay"}}]})
    service.upstream.script("test", Reasoning("let me see"), odd, Say("Yes."))

    held = sdk("create", body=body)["completion"]
    chunks = sdk("stream", body=body)["chunks"]

    message = held["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("let me see", "Yes.")
    assert text_of(chunks, name="reasoning_content") == "let me see"
    assert text_of(chunks, name="mood") == "gay"
    assert held["system_fingerprint"] == "fp_1"


@each_sdk
def test_text_in_any_script_survives(service: Stack, sdk: Sdk, body: Body) -> None:
    """Letters of many bytes, cut between two packets."""
    text = "naïve — 你好, мир! 👩‍👩‍👧 \u2028 \x00 \x85 end"
    service.upstream.script("test", Say(pieces=list(text)))

    chunks = sdk("stream", body=body)["chunks"]

    stored = sdk("retrieve", id=chunks[0]["id"])["completion"]
    assert text_of(chunks) == stored["choices"][0]["message"]["content"] == text


@each_sdk
def test_a_stream_is_taken_up_again(service: Stack, sdk: Sdk, body: Body) -> None:
    """After any chunk, while the job runs and when it has ended: exactly the rest."""
    go = threading.Event()
    service.upstream.script("test", Say("one two"), WaitFor(go), Say(" three"))
    completion_id = sdk("create", body=body | {"background": True})["completion"]["id"]

    sdk.ask("resume", id=completion_id, after=0)
    service.upstream.wait_until(lambda up: up.calls[-1].deltas == 3)
    go.set()
    chunks = sdk.answer()["chunks"]

    assert text_of(chunks) == "one two three"
    for after in range(len(chunks) + 1):
        assert sdk("resume", id=completion_id, after=after)["chunks"] == chunks[after:]


@each_sdk
def test_a_key_may_come_in_another_header(service: Stack, sdk: Sdk, body: Body) -> None:
    """`X-API-Key`, without `Authorization`."""
    service.upstream.script("test", Say("Yes."))

    headers = {"X-API-Key": service.key, "Authorization": None}

    assert sdk("create", body=body, headers=headers)["status"] == 200


@each_sdk
@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_wrong_key_is_refused(sdk: Sdk, body: Body, header: str) -> None:
    """In either header."""
    headers = {"Authorization": None, header: "Bearer ak_wrong"}

    raised = sdk("create", body=body, headers=headers)["raised"]

    assert (raised["class"], raised["status"]) == ("AuthenticationError", 401)
    assert raised["code"] == "invalid_api_key"


@each_sdk
@pytest.mark.parametrize("form", ["create", "stream"])
def test_an_unknown_model_is_not_found(sdk: Sdk, http: httpx.Client, body: Body, form: str) -> None:
    """The field is named, and nothing was queued."""
    raised = sdk(form, body=body | {"model": "nobody"})["raised"]

    assert (raised["class"], raised["status"]) == ("NotFoundError", 404)
    assert (raised["code"], raised["param"]) == ("model_not_found", "model")
    assert jobs_of(http, body) == []


@pytest.mark.parametrize("service", ["sqlite"], indirect=True, scope="module")
def test_every_sdk_bears_half_a_minute_of_silence(
    service: Stack, applications: Applications, body: Body
) -> None:
    """In mid-stream, with the settings as they are, all of them at once."""
    service.upstream.script("test", Say("before"), Wait(30), Say(" after"))

    everybody = [Sdk(applications(name), service) for name in SDKS]
    for sdk in everybody:
        sdk.ask("stream", body=body)
    said = [text_of(sdk.answer()["chunks"]) for sdk in everybody]

    assert said == ["before after"] * len(SDKS)
