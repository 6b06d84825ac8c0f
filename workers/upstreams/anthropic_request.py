"""OpenAI's request as Anthropic's Messages API takes it; what cannot be said there is refused."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from shared.errors import UpstreamRejected
from workers.upstreams.anthropic_messages import cache_control, conversation, unsupported

UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "seed": (),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""What OpenAI's API can do and this one cannot, with the values that ask for nothing."""
HINTS: Final = frozenset(
    {
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "stream",
        "stream_options",
    }
)
"""Fields that change nothing about the answer: they end here."""
TRANSLATED: Final = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "user",
    }
)
TIERS: Final = {"auto": "auto", "default": "standard_only"}
CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}
BUDGETS: Final = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 24_576}
LARGEST_BUDGET: Final = 32_768
SMALLEST_BUDGET: Final = 1_024
FIRST_TO_THINK: Final = (3, 7)
FIRST_TO_ADAPT: Final = (4, 6)
"""From here on a model is told how hard to think, before how many tokens to spend on it."""
NEWEST: Final = (99, 0)
GENERATION: Final = re.compile(r"claude(?:-[a-z]+)?-(\d{1,2})(?!\d)(?:[-.](\d)(?!\d))?")


def messages_request(
    request: Mapping[str, Any], *, model: str, max_output_tokens: int | None
) -> dict[str, Any]:
    """The body of `POST /messages`.

    `max_output_tokens` is the most the model can say; an answer must have a limit there, and this
    one is taken where the request names none. Fields that neither OpenAI nor we know pass as they
    are. Raises `UpstreamRejected` with the field in `param`.
    """
    given = {name: value for name, value in request.items() if value is not None}
    for name, neutral in UNSUPPORTED.items():
        if name in given and given[name] not in neutral:
            raise unsupported(name)
    system, messages = conversation(given["messages"])
    limit = _limit(given, max_output_tokens)
    body = {
        "model": model,
        "max_tokens": limit,
        "system": system or None,
        "messages": messages,
        "stream": True,
        "stop_sequences": _stop(given.get("stop")),
        # OpenAI's scale goes on to 2; Anthropic's own OpenAI endpoint caps it too.
        "temperature": min(given["temperature"], 1) if "temperature" in given else None,
        "metadata": _metadata(given),
        "service_tier": _tier(given.get("service_tier")),
        **_tools(given),
        **_output(given, model, limit),
    }
    body = {name: value for name, value in body.items() if value is not None}
    return body | _others(given, body)


def generation(model: str) -> tuple[int, int]:
    """The version in a model's name; the newest for names that say none."""
    found = GENERATION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else NEWEST


def _others(given: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """What is Anthropic's own, or of next year (`top_p`, `top_k`, `thinking`, `cache_control`)."""
    known = UNSUPPORTED.keys() | HINTS | TRANSLATED
    others = {name: value for name, value in given.items() if name not in known}
    for name in others:
        if name in body:
            raise UpstreamRejected(
                f"'{name}' says again what another field of the request says.", param=name
            )
    return others


def _limit(given: Mapping[str, Any], most: int | None) -> int:
    asked = given.get("max_completion_tokens") or given.get("max_tokens")
    limits = [limit for limit in (asked, most) if limit is not None]
    if not limits:
        raise UpstreamRejected("'max_tokens' is required by this model.", param="max_tokens")
    return min(limits)


def _stop(stop: str | list[str] | None) -> list[str] | None:
    sequences = [stop] if isinstance(stop, str) else stop
    if sequences and not all(sequence.strip() for sequence in sequences):
        raise unsupported("stop", "cannot be whitespace alone for this model")
    return sequences


def _metadata(given: Mapping[str, Any]) -> dict[str, str] | None:
    """Who asks, as a hash: Anthropic wants no names and no addresses."""
    user = given.get("safety_identifier") or given.get("user")
    return {"user_id": hashlib.sha256(user.encode()).hexdigest()} if user else None


def _tier(tier: str | None) -> str | None:
    if tier is not None and tier not in TIERS:
        raise unsupported("service_tier", f"'{tier}' is not offered for this model")
    return None if tier is None else TIERS[tier]


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    tools = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(given.get("tools") or ())]
    if not tools:
        return {}
    asked = given.get("tool_choice")
    if isinstance(asked, dict) and asked["type"] == "allowed_tools":
        allowed = asked["allowed_tools"]
        names = {choice.get("function", {}).get("name") for choice in allowed["tools"]}
        tools = [tool for tool in tools if tool["name"] in names]
        asked = allowed["mode"]
    choice = _choice(asked)
    if given.get("parallel_tool_calls") is False and asked != "none":
        choice = (choice or {"type": "auto"}) | {"disable_parallel_tool_use": True}
    return {"tools": tools, "tool_choice": choice}


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool["type"] != "function":
        raise unsupported(where, "is a custom tool; this model takes functions only")
    function = tool["function"]
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    mapped = {"name": function["name"], "input_schema": {"type": "object", **schema}}
    for name in ("description", "strict"):
        if function.get(name):
            mapped[name] = function[name]
    return mapped | cache_control(tool) | cache_control(function)


def _choice(asked: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if asked is None:
        return None
    if isinstance(asked, str):
        return {"type": CHOICES[asked]}
    # A custom tool was refused with the tools.
    return {"type": "tool", "name": asked["function"]["name"]}


def _output(given: Mapping[str, Any], model: str, limit: int) -> dict[str, Any]:
    """How hard to think, and the form of the answer, which share an object there."""
    fields = _thinking(given.get("reasoning_effort"), model, limit)
    if answer := _format(given.get("response_format")):
        fields["output_config"] = fields.get("output_config", {}) | {"format": answer}
    return fields


def _thinking(effort: str | None, model: str, limit: int) -> dict[str, Any]:
    version = generation(model)
    if effort is None or (effort == "none" and version < FIRST_TO_THINK):
        return {}
    if effort == "none":
        return {"thinking": {"type": "disabled"}}
    if version < FIRST_TO_THINK:
        raise unsupported("reasoning_effort", "asks for thoughts, which this model has not")
    if version >= FIRST_TO_ADAPT:
        level = "low" if effort == "minimal" else effort
        return {"thinking": {"type": "adaptive"}, "output_config": {"effort": level}}
    budget = min(BUDGETS.get(effort, LARGEST_BUDGET), limit - 1)
    if budget < SMALLEST_BUDGET:
        raise unsupported(
            "reasoning_effort", f"needs a limit of more than {SMALLEST_BUDGET} tokens at this model"
        )
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _format(asked: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if asked is None or asked["type"] == "text":
        return None
    schema = asked.get("json_schema", {}).get("schema")
    if schema is None:
        raise unsupported("response_format", "needs a 'json_schema' with a schema for this model")
    return {"type": "json_schema", "schema": schema}
