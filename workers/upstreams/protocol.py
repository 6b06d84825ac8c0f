"""What an attempt asks of an upstream: our request out, its stream in, its failures as ours."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import orjson


class Delta(NamedTuple):
    """One chunk of what a model says, or several in a row that are nothing but text."""

    choices: list[dict[str, Any]]
    """OpenAI's `choices` of a chunk: `index`, `delta`, `finish_reason`, perhaps `logprobs`."""
    lines: list[bytes]
    """Each chunk as a line of JSON, without `id`, `object`, `created`, `model` and `usage`; none of
    a chunk without choices."""
    usage: dict[str, Any] | None = None
    """OpenAI's usage object, when the upstream gave it with this chunk."""
    extra: dict[str, Any] | None = None
    """What else stood in the chunk (`system_fingerprint`, …); None when nothing did."""


def line(chunk: dict[str, Any]) -> bytes:
    """A chunk as a delta's line."""
    # A copy, for it is kept: what orjson makes has 4 KiB, however short it is.
    return bytes(memoryview(orjson.dumps(chunk)))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step of a call may take."""

    connect: timedelta
    first_byte: timedelta
    silence: timedelta
    """Between two reads, once something was read."""


class Upstream(Protocol):
    """A server that runs models. Never retries, logs, counts or touches a row."""

    def stream(
        self, request: dict[str, Any], *, model: str, max_output_tokens: int | None = None
    ) -> AsyncGenerator[list[Delta]]:
        """What the model says, as lists of deltas that arrived together, to the end.

        `request` is OpenAI's request body; `model` the name this upstream knows, and
        `max_output_tokens` the most that each choice can have. Closing the generator closes the
        connection. Raises `UpstreamError`, at once when the upstream has no way to do what is
        asked; a stream that ends without a `finish_reason` for each choice is
        `UpstreamDisconnected`.
        """
        ...
