"""OpenAI's request is validated in full, and what we do not know passes."""

import copy
import json
from typing import Any, get_type_hints
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params

from api.parse import parse_json, validate
from api.wire.chat import ChatCompletionRequest
from api.wire.jobs import JobSubmit, parse_submission
from api.wire.queries import CompletionFilters, JobFilters, parse_query
from shared.errors import InvalidRequest, ServiceError
from tests.unit.malformed import MALFORMED, Malformed
from tests.unit.malformed_chat import OK, with_
from tests.unit.well_formed import WELL_FORMED

BY_SHAPE = [row for row in MALFORMED if not row.needs_service]

KNOWN_KEYS = [*ChatCompletionRequest.model_fields, "role", "content", "type", "name", "text"]
KNOWN_WORDS = ["user", "assistant", "tool", "function", "text", "image_url", "custom", "auto"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(KNOWN_WORDS)
)
keys = st.text() | st.sampled_from(KNOWN_KEYS)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=20,
)


def read(row: Malformed) -> object:
    """What the service does with a request before it knows whose it is."""
    url = urlsplit(row.path)
    is_jobs = url.path == "/v1/jobs"
    if row.method == "GET":
        shape = JobFilters if is_jobs else CompletionFilters
        return parse_query(shape, parse_qsl(url.query, keep_blank_values=True))
    content_type = row.headers.get("content-type")
    data = parse_json(row.content(), content_type=content_type, arrays=is_jobs)
    return parse_submission(data) if is_jobs else validate(ChatCompletionRequest, data)


@pytest.mark.parametrize("row", BY_SHAPE, ids=lambda row: row.name)
def test_a_malformed_request_is_refused_with_its_field(row: Malformed) -> None:
    """Status, code and `param` are what a client's error handling goes by."""
    with pytest.raises(ServiceError) as refused:
        read(row)

    found = (refused.value.status, refused.value.code, refused.value.param)
    assert found == (row.status, row.code, row.param)


@pytest.mark.parametrize("body", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_what_openai_allows_is_allowed(body: dict[str, Any]) -> None:
    """Read from bytes, as it arrives, alone and as a job."""
    data = parse_json(json.dumps(body).encode(), content_type="application/json")

    assert validate(ChatCompletionRequest, data).model == OK["model"]
    assert validate(JobSubmit, data).model == OK["model"]


def test_every_field_of_the_official_sdk_is_known() -> None:
    """A field that a new SDK brings passes unknown, until this test asks for it."""
    offered = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)

    assert set(offered) - set(ChatCompletionRequest.model_fields) == set()


@pytest.mark.parametrize("body", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_the_upstream_gets_every_value_as_it_was_sent(body: dict[str, Any]) -> None:
    """Only our own fields end here; the caller's JSON itself is left alone."""
    sent = copy.deepcopy(body)
    ours = {"background", "on_disconnect", "metadata", "store", "stream", "stream_options"}

    passed = validate(ChatCompletionRequest, body).upstream_body(body)

    kept = {name: value for name, value in passed.items() if name != "stream_options"}
    expected = {name: value for name, value in sent.items() if name not in ours}
    assert json.dumps(kept) == json.dumps(expected)
    assert body == sent


def test_fields_we_do_not_know_can_be_seen_on_the_request() -> None:
    """They are let through, not overlooked."""
    request = validate(ChatCompletionRequest, with_(min_p=0.1))

    assert request.model_extra == {"min_p": 0.1}


def test_the_worker_decides_on_streaming_and_usage_but_not_on_other_stream_options() -> None:
    """Usage is always asked for; whether it is shown was the caller's wish."""
    shown = with_(stream=True, stream_options={"include_usage": True})
    plain = with_(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})

    assert validate(ChatCompletionRequest, shown).upstream_body(shown) == OK
    assert validate(ChatCompletionRequest, plain).upstream_body(plain) == {
        **OK,
        "stream_options": {"include_obfuscation": False},
    }


def test_what_queues_a_job_is_not_sent_to_the_upstream() -> None:
    """`run_at` and its like are for us; a chat request's own unknown fields are not."""
    body = with_(run_at=1, expires_at=2, lane="batch", webhook=None, max_attempts=2, top_k=40)

    assert validate(JobSubmit, body).upstream_body(body) == {**OK, "top_k": 40}


@given(data=values)
@settings(max_examples=100, deadline=None)
def test_any_json_is_a_request_or_a_refusal(data: Any) -> None:
    """Nothing a caller can send is our fault."""
    body = json.dumps(data).encode()
    try:
        validate(ChatCompletionRequest, parse_json(body, content_type="application/json"))
    except InvalidRequest as refused:
        refused.message.encode()


@given(fields=st.dictionaries(st.sampled_from(KNOWN_KEYS), values, max_size=4), data=st.data())
@settings(max_examples=120, deadline=None)
def test_a_good_request_with_any_fields_is_a_request_or_a_refusal(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    """Nearer to the truth, more of the shapes are reached."""
    body = {**data.draw(st.sampled_from(list(WELL_FORMED.values()))), **fields}
    try:
        [job] = parse_submission(body)
    except InvalidRequest as refused:
        refused.message.encode()
    else:
        job.upstream_body(body)
