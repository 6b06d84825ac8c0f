"""Upstreams called over a real connection, and what came of it."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import uvloop

from shared.catalog import UpstreamEntry
from shared.chat import Transcript
from shared.errors import UpstreamError
from workers.upstreams.connections import Connections
from workers.upstreams.protocol import Delta, Timeouts, Upstream

KEY = "sk-of-the-upstream"
PATIENT = Timeouts(*(timedelta(seconds=5) for _ in range(3)))
HASTY = Timeouts(timedelta(seconds=5), timedelta(seconds=0.3), timedelta(seconds=0.3))


@dataclass
class Heard:
    """What came of one call."""

    reads: list[list[Delta]] = field(default_factory=list)
    error: UpstreamError | None = None

    @property
    def deltas(self) -> list[Delta]:
        return [delta for deltas in self.reads for delta in deltas]

    @property
    def usage(self) -> dict[str, Any] | None:
        reported = [delta.usage for delta in self.deltas if delta.usage]
        return reported[-1] if reported else None

    def choices(self) -> list[dict[str, Any]]:
        transcript = Transcript()
        for delta in self.deltas:
            transcript.add(delta.choices, delta.extra)
        return transcript.choices()

    @property
    def text(self) -> str | None:
        return "".join(choice["message"]["content"] or "" for choice in self.choices())


@asynccontextmanager
async def opened(
    speaks: Callable[..., Upstream],
    entry: UpstreamEntry,
    timeouts: Timeouts = PATIENT,
    api_key: str | None = KEY,
) -> AsyncGenerator[Upstream, None]:
    """The adapter, with connections of its own."""
    with Connections() as connections:
        yield speaks(connections, entry, api_key=api_key, timeouts=timeouts)


async def listen(upstream: Upstream, request: dict[str, Any], **how: Any) -> Heard:
    """Everything the model says, and how it failed."""
    heard = Heard()
    try:
        async with aclosing(upstream.stream(request, **how)) as stream:
            async for deltas in stream:
                heard.reads.append(deltas)
    except UpstreamError as error:
        heard.error = error
    return heard


def hear(
    speaks: Callable[..., Upstream],
    entry: UpstreamEntry,
    request: dict[str, Any],
    *,
    timeouts: Timeouts = PATIENT,
    api_key: str | None = KEY,
    **how: Any,
) -> Heard:
    """One call from beginning to end."""

    async def call() -> Heard:
        async with opened(speaks, entry, timeouts, api_key) as upstream:
            return await listen(upstream, request, **how)

    return uvloop.run(call())


def failure(heard: Heard, kind: type[UpstreamError]) -> UpstreamError:
    """The failure, which must be of this kind and no other."""
    assert type(heard.error) is kind, heard.error
    return heard.error
