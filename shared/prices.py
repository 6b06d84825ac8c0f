"""What a completion costs: at most, before it runs, and exactly, by what it used.

Integers throughout, in nano-credits (10^-9 credit); a fraction of one is rounded up.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Final

import orjson

from shared.catalog import Model

NANO: Final = 1_000_000_000
"""Nano-credits in a credit."""
WHOLE: Final = Decimal(1)
PER_TOKEN: Final = NANO // 1_000_000
"""Nano-credits a token, for a price of one credit per million."""
BYTES_PER_TOKEN: Final = 3
"""Fewer than any tokenizer needs on average, so that an estimate errs upwards."""
MESSAGE_TOKENS: Final = 8
"""What a message costs beside its text."""
IMAGE_TOKENS: Final = 1_600
CHARACTERS_PER_TOKEN: Final = 8
"""More than any tokenizer reaches on average, so that an estimate errs downwards."""
PICTURE: Final = b'"image_url"'
"""In the JSON of what may have pictures."""
_RUN: Final = re.compile(r"(.)\1{3,}", re.DOTALL)


@dataclass(frozen=True)
class Prices:
    """A model's, in nano-credits a token."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal

    @classmethod
    def of(cls, model: Model, part: Decimal = WHOLE) -> "Prices":
        """The prices of a model, or a `part` of each.

        What it does not say of its cache costs as much as any input.
        """
        plain = model.input_price
        cached, write = model.cached_input_price, model.cache_write_price
        return _reckoned(
            plain,
            plain if cached is None else cached,
            plain if write is None else write,
            model.output_price,
            part,
        )

    @classmethod
    def kept(cls, snapshot: Sequence[str]) -> "Prices":
        """Those of a `snapshot`."""
        return _read(*snapshot)

    @cached_property
    def snapshot(self) -> list[str]:
        """As they are kept with a job."""
        return [str(self.input), str(self.cached_input), str(self.cache_write), str(self.output)]

    def cost(self, usage: Mapping[str, Any]) -> int:
        """What this usage costs; every token is in one bucket and priced once."""
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        cached = min(_count(details, "cached_tokens"), prompt)
        written = min(_count(details, "cache_write_tokens"), prompt - cached)
        return math.ceil(
            (prompt - cached - written) * self.input
            + cached * self.cached_input
            + written * self.cache_write
            + completion * self.output
        )

    def bound(self, prompt: int, completion: int) -> int:
        """The most that so many tokens can cost, wherever they are counted."""
        return math.ceil(prompt * self._dearest + completion * self.output)

    def affords(self, nano: int, prompt: int) -> int:
        """How many tokens of output so many nano-credits are enough for, after the prompt."""
        return math.floor((nano - prompt * self._dearest) / self.output)

    @cached_property
    def _dearest(self) -> Decimal:
        return max(self.input, self.cached_input, self.cache_write)


@lru_cache  # they are the same for all that ask for a model
def _reckoned(inward: float, cached: float, write: float, output: float, part: Decimal) -> Prices:
    each = (Decimal(str(price)) * PER_TOKEN * part for price in (inward, cached, write, output))
    return Prices(*each)


@lru_cache
def _read(*snapshot: str) -> Prices:
    return Prices(*map(Decimal, snapshot))


def shown(nano: int) -> str:
    """So many nano-credits, in credits, as a sentence has them."""
    return str((Decimal(nano) / NANO).normalize().__format__("f"))


def _count(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def prompt_tokens(request: Mapping[str, Any]) -> int:
    """About how many tokens a request's input has, rather more than fewer."""
    written = [orjson.dumps(request[name]) for name in INPUT_FIELDS if request.get(name)]
    pictures = 0
    if any(PICTURE in each for each in written):
        written, pictures = _without_pictures(request)
    size = sum(map(len, written))
    messages = request.get("messages") or ()
    return -(-size // BYTES_PER_TOKEN) + MESSAGE_TOKENS * len(messages) + IMAGE_TOKENS * pictures


def _without_pictures(request: Mapping[str, Any]) -> tuple[list[bytes], int]:
    """Its input as JSON, each field for itself, and how many pictures were in it."""
    pictures = 0

    def text(value: Any) -> Any:
        nonlocal pictures
        if isinstance(value, dict):
            if value.get("type") == "image_url":
                pictures += 1
                return None
            return {key: text(inner) for key, inner in value.items()}
        return [text(inner) for inner in value] if isinstance(value, list) else value

    fields = [request[name] for name in INPUT_FIELDS if request.get(name)]
    return [orjson.dumps(text(each)) for each in fields], pictures


def least_prompt_tokens(request: Mapping[str, Any], *, room: int) -> int:
    """Fewer tokens than a request's messages have by any tokenizer's count.

    In ordinary text, of whatever language, no tokenizer's tokens have as many characters on average
    as here. A run of one character may be a single token: what seems to exceed the `room` there is
    for it is counted again without runs. Pictures count nothing.
    """
    texts = list(_texts(request.get("messages") or ()))
    least = sum(map(len, texts)) // CHARACTERS_PER_TOKEN
    if least > room:
        least = sum(len(_RUN.sub(r"\1", text)) for text in texts) // CHARACTERS_PER_TOKEN
    return least


def _texts(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            if isinstance(part.get("text"), str):
                yield part["text"]


INPUT_FIELDS: Final = ("messages", "tools", "functions", "response_format", "system")


def completion_tokens(response: Mapping[str, Any]) -> int:
    """About how many tokens a completion's choices have, for upstreams that do not count."""
    said = [choice.get("message") or {} for choice in response.get("choices") or []]
    size = sum(
        len(str(message.get(name) or "").encode())
        for message in said
        for name in ("content", "reasoning_content", "refusal", "tool_calls")
    )
    return -(-size // BYTES_PER_TOKEN)


def choice_cap(request: Mapping[str, Any], model: Model, *, prompt: int | None = None) -> int:
    """The most tokens that each choice can have: what is asked for, as far as the model goes.

    Of its window, what the prompt has at the very least is not to be had; that is not looked for
    where there is room for all that it has by `prompt_tokens`.
    """
    asked = request.get("max_completion_tokens") or request.get("max_tokens")
    cap = min(int(asked or model.max_output_tokens), model.max_output_tokens)
    room = model.context_window - cap
    if prompt is not None and prompt <= room:
        return max(1, cap)
    left = model.context_window - least_prompt_tokens(request, room=room)
    return max(1, min(cap, left))


def output_cap(request: Mapping[str, Any], model: Model, *, prompt: int | None = None) -> int:
    """The most tokens that a request can have said, over all its choices."""
    return choice_cap(request, model, prompt=prompt) * int(request.get("n") or 1)


def most(
    request: Mapping[str, Any], chain: Iterable[Model], part: Decimal = WHOLE, *, prompt: int
) -> int:
    """The most a request can cost at the dearest of these models, at a `part` of their prices.

    Its input has about `prompt` tokens. Zero when all are free.
    """
    return max(
        Prices.of(model, part).bound(
            min(prompt, model.context_window), output_cap(request, model, prompt=prompt)
        )
        for model in chain
    )
