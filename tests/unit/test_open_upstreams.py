"""Which upstreams a worker can call."""

import asyncio

import pytest

from shared.catalog import Catalog, UpstreamEntry
from workers.settings import WorkerSettings
from workers.upstreams import open_upstreams
from workers.upstreams.anthropic import AnthropicUpstream
from workers.upstreams.connections import Connections
from workers.upstreams.openai import OpenAIUpstream


def test_each_upstream_is_called_in_its_dialect_if_its_key_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that names a key which is not there is left out."""
    monkeypatch.setenv("KEY_OF_A", "k")
    monkeypatch.setenv("KEY_OF_C", "")
    entries = {
        "a": UpstreamEntry(dialect="anthropic", base_url="http://a", api_key_env="KEY_OF_A"),
        "b": UpstreamEntry(dialect="openai", base_url="http://b"),
        "c": UpstreamEntry(dialect="openai", base_url="http://c", api_key_env="KEY_OF_C"),
    }

    async def opened() -> dict[str, type]:
        with Connections() as connections:
            upstreams = open_upstreams(
                connections, Catalog(upstreams=entries, models={}), WorkerSettings()
            )
            return {name: type(upstream) for name, upstream in upstreams.items()}

    assert asyncio.run(opened()) == {"a": AnthropicUpstream, "b": OpenAIUpstream}
