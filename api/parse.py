"""Bytes to JSON to a wire shape; everything that is wrong becomes `InvalidRequest` with its field.

Numbers are IEEE doubles or 64-bit integers, as RFC 8259 expects; lone surrogates, NaN and numbers
beyond a double are refused here, so nothing later meets text or numbers that cannot be stored.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, Discriminator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from shared.errors import InvalidRequest, UnsupportedMediaType

Shape = TypeVar("Shape", bound=BaseModel)
Result = TypeVar("Result")

LARGE = 128 * 1024
"""Bytes from which a body is worth a thread: megabytes can take a second."""

QUOTED = 80
"""Characters of a wrong value that a message repeats."""
PARAM = 200
"""Characters of a field's path that are shown; keys are the caller's and may be any length."""
UNKNOWN = "unknown_"
"""Begins the type of an error that `by_field` makes; the field's name follows."""
SENTENCES = {
    "model_type": "should be an object",
    "dict_type": "should be an object",
    "list_type": "should be an array",
    "string_type": "should be a string",
    "int_type": "should be an integer",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "too_short": "should hold {min_length} or more",
    "too_long": "should hold {max_length} or fewer",
    "string_too_short": "should have {min_length} or more characters",
    "string_too_long": "should have {max_length} or fewer characters",
    "string_pattern_mismatch": "should match {pattern}",
    "extra_forbidden": "there is no such field",
}
"""Where pydantic speaks of Python, in the words of JSON instead."""
KINDS: dict[type, str] = {str: "<string>", list: "<array>", dict: "<object>"}


def parse_json(
    body: bytes, *, content_type: str | None, depth_limit: int = 64, arrays: bool = False
) -> Any:
    """The JSON object (or array, if `arrays`) in a request's body.

    Raises `UnsupportedMediaType` when the body is not JSON by its own word, and `InvalidRequest`
    when it is empty, broken, nested deeper than `depth_limit`, or of another kind.
    """
    expected = "a JSON object or array" if arrays else "a JSON object"
    if not body:
        raise InvalidRequest(f"The request body is empty; send {expected}.")
    if not _says_json(content_type):
        said = f"not {_quoted(content_type)}" if content_type else "but has no content type"
        raise UnsupportedMediaType(
            f"The body must be sent with 'Content-Type: application/json', {said}."
        )
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None
    if not isinstance(data, dict) and not (arrays and isinstance(data, list)):
        raise InvalidRequest(f"The request body must be {expected}, not {_quoted(data)}.")
    # Prompts are full of brackets, so their count can only clear a body, never condemn it.
    if body.count(b"{") + body.count(b"[") > depth_limit and deeper(data, depth_limit):
        raise InvalidRequest(f"The request body is nested more than {depth_limit} levels deep.")
    return data


async def read(body: bytes, work: Callable[[], Result]) -> Result:
    """What `work` makes of a body; of a large one in a thread, so that the event loop goes on."""
    return await asyncio.to_thread(work) if len(body) > LARGE else work()


def validate(model: type[Shape], data: Any, *, within: str = "") -> Shape:
    """`data` as a wire shape, or `InvalidRequest` for its first fault.

    `within` is put before the field's path: `[3]` makes `[3].messages[0].content`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _refusal(fault, within) from None


def wrong(field: str, sentence: str) -> PydanticCustomError:
    """What a validator raises when fields do not fit together: `field` is to blame, because …"""
    return PydanticCustomError("wrong", "{sentence}", {"field": field, "sentence": sentence})


def by_field(name: str, *known: str) -> Discriminator:
    """Chooses a union's branch by the object's field `name`; branch X carries `Tag("<X>")`."""
    tags = {value: f"<{value}>" for value in known}

    def branch(value: Any) -> str | None:
        said = value.get(name) if isinstance(value, dict) else None
        return tags.get(said) if isinstance(said, str) else None

    return Discriminator(branch, UNKNOWN + name, f"should be {_listed(known)}")


def by_kind(expected: str) -> Discriminator:
    """Chooses by JSON kind between branches tagged `<string>`, `<array>` and `<object>`."""
    return Discriminator(
        lambda value: KINDS.get(type(value)), "wrong_kind", f"should be {expected}"
    )


def _says_json(content_type: str | None) -> bool:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def deeper(data: Any, limit: int) -> bool:
    """Whether arrays and objects are nested more than so many levels deep."""
    level = [data]
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _refusal(fault: ErrorDetails, within: str) -> InvalidRequest:
    kind, value = fault["type"], fault["input"]
    context: Mapping[str, Any] = fault.get("ctx", {})
    path: Sequence[int | str] = fault["loc"]
    if kind.startswith(UNKNOWN) and isinstance(value, dict):
        field = kind.removeprefix(UNKNOWN)
        path, kind = (*path, field), kind if field in value else "missing"
        sentence = f"{fault['msg']}; got {_quoted(value.get(field))}"
    elif kind.startswith(UNKNOWN):
        sentence = f"should be an object; got {_quoted(value)}"
    elif kind == "wrong":
        path, sentence = (*path, context["field"]), context["sentence"]
    else:
        told = SENTENCES[kind].format(**context) if kind in SENTENCES else _lowered(fault["msg"])
        sentence = f"{told}; got {_quoted(value)}"
    param = _param(path, within)
    if kind == "missing":
        return InvalidRequest(f"Missing required field '{param}'.", param=param or None)
    subject = f"Invalid '{param}'" if param else "Invalid request body"
    return InvalidRequest(f"{subject}: {sentence}.", param=param or None)


def _param(path: Sequence[int | str], within: str) -> str:
    """`("messages", 0, "<user>", "content")` as OpenAI writes it: `messages[0].content`."""
    written = within
    for step in path:
        if isinstance(step, int):
            written += f"[{step}]"
        elif not step.startswith("<") and step != "[key]":  # branches of unions are not fields
            written += f".{step}" if written else step
    return _printable(written[:PARAM])


def _lowered(message: str) -> str:
    sentence = message.removeprefix("Input ")
    return sentence[:1].lower() + sentence[1:]


def _quoted(value: Any) -> str:
    """A value as a message may repeat it: short, on one line, nothing of what is inside."""
    match value:
        case None | True | False:
            return orjson.dumps(value).decode()
        case str():
            short = value if len(value) <= QUOTED else value[:QUOTED] + "…"
            return _printable(repr(short))
        case int() if abs(value) >= 1 << 64:
            return "an integer beyond 64 bits"
        case int() | float():
            return repr(value)
        case list():
            return f"an array of {len(value)}"
        case dict():
            return "an object"
    return "something that is not JSON"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
