"""Servers that speak OpenAI's chat completions: OpenAI, Azure, vLLM, llama.cpp, Ollama and more."""

from collections.abc import AsyncGenerator
from typing import Any, Final
from urllib.parse import quote

import orjson

from shared.catalog import UpstreamEntry
from workers.upstreams.calls import Caller
from workers.upstreams.connections import Connections
from workers.upstreams.openai_stream import reader_for
from workers.upstreams.protocol import Delta, Timeouts

LIMITS: Final = ("max_completion_tokens", "max_tokens")
"""The names of a limit; OpenAI's newer models refuse the second."""


class OpenAIUpstream:
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
        self._azure_version = entry.api_version
        headers = {}
        if api_key is not None and self._azure_version is not None:
            headers = {"api-key": api_key}
        elif api_key is not None:
            headers = {"Authorization": f"Bearer {api_key}"}
        self._caller = Caller(
            connections, entry, headers=headers, secret=api_key, timeouts=timeouts
        )

    def stream(
        self, request: dict[str, Any], *, model: str, max_output_tokens: int | None = None
    ) -> AsyncGenerator[list[Delta], None]:
        """What the model says, and no more of it than `max_output_tokens`.

        Closing the generator closes the connection. Raises `UpstreamError`.
        """
        reader = reader_for(request.get("n") or 1, self._api_key)
        return self._caller.stream(
            self._path(model), _body(request, model, max_output_tokens), reader
        )

    def _path(self, model: str) -> str:
        if self._azure_version is None:
            return "/chat/completions"
        deployment, version = quote(model, safe=""), quote(self._azure_version, safe="")
        return f"/deployments/{deployment}/chat/completions?api-version={version}"


def _body(request: dict[str, Any], model: str, most: int | None) -> bytes:
    options = {**(request.get("stream_options") or {}), "include_usage": True}
    ours = {"model": model, "stream": True, "stream_options": options}
    return orjson.dumps({**request, **_limits(request, most), **ours})


def _limits(request: dict[str, Any], most: int | None) -> dict[str, int]:
    """What is asked for, or `most`, which is what was reckoned with when the job was accepted."""
    if most is None:
        return {}
    asked = {name: request[name] for name in LIMITS if request.get(name)}
    return {name: min(each, most) for name, each in asked.items()} or {LIMITS[0]: most}
