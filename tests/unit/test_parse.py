"""Bytes become JSON and JSON becomes a shape, or the caller is told what is wrong and where."""

from typing import Literal

import orjson
import pytest
from pydantic import BaseModel

from api.parse import parse_json, validate
from api.wire.chat import ChatCompletionRequest
from shared.errors import InvalidRequest, UnsupportedMediaType
from tests.unit.malformed import nested
from tests.unit.malformed_chat import OK, message, with_

JSON = "application/json"


class Order(BaseModel):
    """Something to validate that is not ours."""

    size: Literal["small", "large"] = "small"
    note: str = ""


@pytest.mark.parametrize(
    "content_type",
    [JSON, "Application/JSON; charset=utf-8", "application/problem+json", " application/json "],
)
def test_any_json_media_type_is_read(content_type: str) -> None:
    """Parameters, case and `+json` are all the same JSON."""
    assert parse_json(b'{"a": 1}', content_type=content_type) == {"a": 1}


def test_an_empty_body_is_told_what_to_send_whatever_its_type() -> None:
    """Clients that forget the body often forget its type as well."""
    with pytest.raises(InvalidRequest, match="is empty; send a JSON object"):
        parse_json(b"", content_type=None)


def test_a_body_of_another_type_is_told_which_type_to_send() -> None:
    """415 names the header that would help."""
    with pytest.raises(UnsupportedMediaType, match="Content-Type: application/json"):
        parse_json(b"{}", content_type="text/plain")


def test_broken_json_is_located_but_not_repeated() -> None:
    """The position helps; the prompt around it would end in logs."""
    with pytest.raises(InvalidRequest, match="line 1 column 10") as refused:
        parse_json(b'{"secret"; 1}', content_type=JSON)

    assert "secret" not in refused.value.message


def test_nesting_is_allowed_up_to_the_limit_and_not_beyond() -> None:
    """The 64th level passes, the 65th does not."""
    parse_json(nested(64), content_type=JSON)

    with pytest.raises(InvalidRequest, match="nested more than 64 levels"):
        parse_json(nested(65), content_type=JSON)


def test_brackets_in_a_prompt_are_not_nesting() -> None:
    """Code is what models are asked about most."""
    body = orjson.dumps(message(role="user", content="[{" * 5_000))

    assert parse_json(body, content_type=JSON)["model"]


def test_many_shallow_containers_are_not_deep() -> None:
    """A long conversation has thousands of brackets and five levels."""
    body = orjson.dumps({"rows": [[{}], []] * 1_000})

    assert len(parse_json(body, content_type=JSON)["rows"]) == 2_000


def test_an_array_is_read_only_where_arrays_are_meant() -> None:
    """`POST /v1/jobs` takes several requests; nothing else does."""
    assert parse_json(b"[1]", content_type=JSON, arrays=True) == [1]

    with pytest.raises(InvalidRequest, match="must be a JSON object, not an array of 1"):
        parse_json(b"[1]", content_type=JSON)


def test_text_arrives_whole() -> None:
    """Emoji as escapes or bytes, NUL and every other character that UTF-8 can carry."""
    body = b'{"a": "\\ud83d\\ude00 \xf0\x9f\x98\x80 \\u0000 \\u2028"}'

    assert parse_json(body, content_type=JSON) == {"a": "😀 😀 \0 \u2028"}


def test_integers_of_64_bits_arrive_exactly() -> None:
    """A seed is not rounded through a double."""
    body = b'{"low": -9223372036854775808, "high": 9223372036854775807}'

    assert parse_json(body, content_type=JSON) == {"low": -(2**63), "high": 2**63 - 1}


def test_a_refusal_says_what_was_expected_and_what_was_sent() -> None:
    """One sentence is enough to mend the request."""
    with pytest.raises(InvalidRequest) as refused:
        validate(ChatCompletionRequest, with_(temperature=3))

    assert refused.value.message == (
        "Invalid 'temperature': should be less than or equal to 2; got 3."
    )


def test_a_missing_field_is_said_to_be_missing() -> None:
    """Not to be wrong."""
    with pytest.raises(InvalidRequest, match=r"^Missing required field 'messages'\.$"):
        validate(ChatCompletionRequest, {"model": "m"})
    with pytest.raises(InvalidRequest, match=r"^Missing required field 'messages\[0\]\.role'\.$"):
        validate(ChatCompletionRequest, message(content="hi"))


def test_an_unknown_choice_is_told_the_known_ones() -> None:
    """The message of a union is about the branch, not about every branch's faults."""
    with pytest.raises(InvalidRequest) as refused:
        validate(ChatCompletionRequest, message(role="robot", content=5))

    assert refused.value.param == "messages[0].role"
    assert "'assistant', 'tool' or 'function'; got 'robot'" in refused.value.message


@pytest.mark.parametrize("value", ["x" * 1_000_000, ["x"] * 1_000, {"x": "y" * 1_000}, 10**4_000])
def test_a_refusal_repeats_no_more_than_a_glimpse_of_the_value(value: object) -> None:
    """A message must not become a copy of the prompt."""
    with pytest.raises(InvalidRequest) as refused:
        validate(Order, {"size": value})

    assert len(refused.value.message) < 200


def test_a_refusal_of_a_huge_key_is_short() -> None:
    """Keys are the caller's too."""
    with pytest.raises(InvalidRequest) as refused:
        validate(ChatCompletionRequest, with_(metadata={"k" * 1_000_000: "v"}))

    assert len(refused.value.message) < 400
    assert len(refused.value.param or "") <= 200


@pytest.mark.parametrize("text", ["\0", "\n", "\ud800", "\u202e"])
def test_a_refusal_can_be_written_on_one_line_of_utf8(text: str) -> None:
    """Whatever was sent, the answer and the log can show it."""
    with pytest.raises(InvalidRequest) as refused:
        validate(ChatCompletionRequest, with_(metadata={text: 5}, seed=text))

    assert (refused.value.message + str(refused.value.param)).encode().decode().isprintable()


def test_a_path_can_start_within_an_array() -> None:
    """The third job of an array is `[2]`."""
    with pytest.raises(InvalidRequest) as refused:
        validate(ChatCompletionRequest, {**OK, "n": 0}, within="[2]")

    assert refused.value.param == "[2].n"
