"""Upstreams: one adapter for each dialect, opened with the keys that only workers hold."""

import os

from shared.catalog import Catalog
from workers.settings import WorkerSettings
from workers.upstreams.anthropic import AnthropicUpstream
from workers.upstreams.connections import Connections
from workers.upstreams.openai import OpenAIUpstream
from workers.upstreams.protocol import Timeouts, Upstream


def open_upstreams(
    connections: Connections, catalog: Catalog, settings: WorkerSettings
) -> dict[str, Upstream]:
    """The upstreams this process can call, by name; one whose key is not set is left out."""
    timeouts = Timeouts(
        connect=settings.connect_timeout,
        first_byte=settings.first_byte_timeout,
        silence=settings.silence_timeout,
    )
    opened: dict[str, Upstream] = {}
    for name, entry in catalog.upstreams.items():
        key = os.environ.get(entry.api_key_env) if entry.api_key_env else None
        if entry.api_key_env is None or key:
            speaks = AnthropicUpstream if entry.dialect == "anthropic" else OpenAIUpstream
            opened[name] = speaks(connections, entry, api_key=key, timeouts=timeouts)
    return opened
