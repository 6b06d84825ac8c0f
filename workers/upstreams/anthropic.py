"""Servers that speak Anthropic's Messages API."""

from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson

from shared.catalog import UpstreamEntry
from workers.upstreams.anthropic_request import messages_request
from workers.upstreams.anthropic_stream import MessageEvents
from workers.upstreams.calls import Caller
from workers.upstreams.connections import Connections
from workers.upstreams.protocol import Delta, Timeouts

VERSION: Final = "2023-06-01"


class AnthropicUpstream:
    """One such server; `Upstream` for the worker."""

    def __init__(
        self,
        connections: Connections,
        entry: UpstreamEntry,
        *,
        api_key: str | None,
        timeouts: Timeouts,
    ) -> None:
        self._api_key = api_key
        headers = {"anthropic-version": VERSION}
        if api_key is not None:
            headers["x-api-key"] = api_key
        self._caller = Caller(
            connections, entry, headers=headers, secret=api_key, timeouts=timeouts
        )

    def stream(
        self, request: dict[str, Any], *, model: str, max_output_tokens: int | None = None
    ) -> AsyncGenerator[list[Delta], None]:
        """What the model says, in OpenAI's words.

        Closing the generator closes the connection. Raises `UpstreamError`, at once when the
        request asks for what Anthropic's API cannot do.
        """
        body = messages_request(request, model=model, max_output_tokens=max_output_tokens)
        return self._caller.stream(
            "/messages", orjson.dumps(body), lambda _: MessageEvents(self._api_key)
        )
