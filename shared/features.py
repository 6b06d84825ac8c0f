"""Which features a request uses, so that no model is asked for what it has not."""

from collections.abc import Collection, Iterator, Mapping
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
    "parallel_tool_calls",
    "penalties",
    "prediction",
    "reasoning_effort",
    "seed",
    "temperature",
    "tools",
    "top_p",
    "verbosity",
    "vision",
    "web_search",
]

DROPPABLE: Final[frozenset[Feature]] = frozenset(
    {
        "logit_bias",
        "logprobs",
        "parallel_tool_calls",
        "penalties",
        "prediction",
        "reasoning_effort",
        "seed",
        "temperature",
        "top_p",
        "verbosity",
    }
)
"""What only steers an answer. What a request says, and the form its answer has to have, does not:
it is never left out."""
DROP: Final = "drop_unsupported"
"""The field by which a request says that a model which lacks such a feature may do without it:
true of all of them, or a list of the fields that were filled in for the caller."""

_BY_FIELD: Final[Mapping[str, tuple[Feature, tuple[Any, ...]]]] = {
    "audio": ("audio", ()),
    "frequency_penalty": ("penalties", (0,)),
    "functions": ("tools", ([],)),
    "logit_bias": ("logit_bias", ({},)),
    "top_logprobs": ("logprobs", ()),
    "logprobs": ("logprobs", (False,)),
    "n": ("n", (1,)),
    "parallel_tool_calls": ("parallel_tool_calls", (True,)),
    "prediction": ("prediction", ()),
    "presence_penalty": ("penalties", (0,)),
    "reasoning_effort": ("reasoning_effort", ("none",)),
    "seed": ("seed", ()),
    "temperature": ("temperature", (1,)),
    "tools": ("tools", ([],)),
    "top_p": ("top_p", (1,)),
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
    """The features that a model must have for a request's body, each with the field that asks."""
    found = {feature: field for field, feature in _asking(request)}
    for feature in _in_messages(request.get("messages") or ()):
        found.setdefault(feature, "messages")
    if any(tool.get("type") == "custom" for tool in request.get("tools") or ()):
        found["custom_tools"] = "tools"
    if answer := _BY_FORMAT.get((request.get("response_format") or {}).get("type", "")):
        found[answer] = "response_format"
    spared = _spared(request)
    return {feature: field for feature, field in found.items() if feature not in spared}


def unsupported(request: Mapping[str, Any], lacks: Collection[Feature]) -> list[str]:
    """The fields that a model which lacks these features does not get, if the request allows it."""
    left_out = _spared(request).intersection(lacks)
    if not left_out:
        return []
    return [field for field, feature in _asking(request) if feature in left_out]


def _spared(request: Mapping[str, Any]) -> frozenset[Feature]:
    """What a model need not have for a request, for it may be left out."""
    fields = request.get(DROP)
    if isinstance(fields, list):
        return frozenset(_BY_FIELD[field][0] for field in fields) & DROPPABLE
    return DROPPABLE if fields else frozenset()


def without(request: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The request as an upstream gets it: without these fields, and the one that allows it."""
    return {name: value for name, value in request.items() if name not in {DROP, *fields}}


def _asking(request: Mapping[str, Any]) -> Iterator[tuple[str, Feature]]:
    """The fields that ask for a feature."""
    if _BY_FIELD.keys().isdisjoint(request):
        return
    for field, (feature, neutral) in _BY_FIELD.items():
        value = request.get(field)
        if value is not None and value not in neutral:
            yield field, feature


def _in_messages(messages: Any) -> Iterator[Feature]:
    for message in messages:
        if message.get("role") == "tool" or message.get("tool_calls"):
            yield "tools"
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if feature := _BY_PART.get(part.get("type", "")):
                yield feature
