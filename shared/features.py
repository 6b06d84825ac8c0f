"""Which features a request uses, so that no model is asked for what it has not."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

Feature = Literal[
    "audio",
    "custom_tools",
    "files",
    "json_object",
    "json_schema",
    "logit_bias",
    "logprobs",
    "n",
    "penalties",
    "prediction",
    "seed",
    "tools",
    "verbosity",
    "vision",
    "web_search",
]

_BY_FIELD: Final[Mapping[str, tuple[Feature, tuple[Any, ...]]]] = {
    "audio": ("audio", ()),
    "frequency_penalty": ("penalties", (0,)),
    "functions": ("tools", ([],)),
    "logit_bias": ("logit_bias", ({},)),
    "logprobs": ("logprobs", (False,)),
    "n": ("n", (1,)),
    "prediction": ("prediction", ()),
    "presence_penalty": ("penalties", (0,)),
    "seed": ("seed", ()),
    "tools": ("tools", ([],)),
    "verbosity": ("verbosity", ("medium",)),
    "web_search_options": ("web_search", ()),
}
"""The feature a field asks for, and the values that ask for nothing."""
_BY_PART: Final[Mapping[str, Feature]] = {
    "file": "files",
    "image_url": "vision",
    "input_audio": "audio",
}
_BY_FORMAT: Final[Mapping[str, Feature]] = {
    "json_object": "json_object",
    "json_schema": "json_schema",
}


def used(request: Mapping[str, Any]) -> dict[Feature, str]:
    """The features that a request's body uses, each with the field that asks for it."""
    found = {
        feature: field
        for field, (feature, neutral) in _BY_FIELD.items()
        if (value := request.get(field)) is not None and value not in neutral
    }
    for feature in _in_messages(request.get("messages") or ()):
        found.setdefault(feature, "messages")
    if any(tool.get("type") == "custom" for tool in request.get("tools") or ()):
        found["custom_tools"] = "tools"
    if answer := _BY_FORMAT.get((request.get("response_format") or {}).get("type", "")):
        found[answer] = "response_format"
    return found


def _in_messages(messages: Any) -> Iterator[Feature]:
    for message in messages:
        if message.get("role") == "tool" or message.get("tool_calls"):
            yield "tools"
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if feature := _BY_PART.get(part.get("type", "")):
                yield feature
