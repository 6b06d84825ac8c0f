"""The catalogue read anew while a process runs: a bad one changes nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from shared import catalog
from shared.catalog import Catalog, CatalogError

log = structlog.get_logger()


def again(path: Path, old: Catalog) -> Catalog:
    """What the file offers now, the log says what is different; the `old` one if it is bad."""
    try:
        new = catalog.load(path)
    except CatalogError as error:
        log.error("catalog_kept", error=str(error))
        return old
    changes = {
        **_changes("models", old.models, new.models),
        **_changes("upstreams", old.upstreams, new.upstreams),
    }
    log.info("catalog_reloaded", models=len(new.models), **changes)
    return new


def _changes(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names that came, went, or stand for something else, as far as there are any."""
    stayed = old.keys() & new.keys()
    names = {
        f"{what}_added": sorted(new.keys() - old.keys()),
        f"{what}_removed": sorted(old.keys() - new.keys()),
        f"{what}_changed": sorted(name for name in stayed if old[name] != new[name]),
    }
    return {word: found for word, found in names.items() if found}
