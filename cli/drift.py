"""How far a catalogue's prices are from those that the package genai-prices knows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cli.failure import FAILED, Failure

if TYPE_CHECKING:
    from shared.catalog import Catalog, Model

CREDITS_PER_DOLLAR: Final = 100.0
"""What the catalogue that comes with the package takes a credit for: a US cent."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A model with a price, beside what its upstream asks for it."""

    model: str
    counterpart: str | None
    """What genai-prices calls it; None when it knows no such model of that upstream."""
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Our price and theirs, in credits per million tokens, by the key of the catalogue."""


def compare(
    catalog: "Catalog", *, credits_per_dollar: float = CREDITS_PER_DOLLAR
) -> Iterator[Compared]:
    """Each model with a price, but for patterns. Raises `Failure` without the package."""
    try:
        from genai_prices import data_snapshot
    except ImportError:
        raise Failure(
            "Prices were not compared: genai-prices is not installed (pip install genai-prices).",
            code=FAILED,
        ) from None
    known = data_snapshot.get_snapshot()
    for model in catalog.models.values():
        if model.free or model.is_pattern:
            continue
        address = catalog.upstreams[model.upstream].base_url
        try:
            provider, found = known.find_provider_model(model.upstream_model, None, None, address)
        except LookupError:
            yield Compared(model.name, None)
            continue
        differences = _differences(model, found.get_prices(datetime.now(UTC)), credits_per_dollar)
        yield Compared(model.name, f"{provider.id}:{found.id}", differences)


def _differences(model: "Model", theirs: Any, rate: float) -> dict[str, tuple[float, float]]:
    plain = model.input_price
    pairs = {
        "input_price": (plain, theirs.input_mtok),
        "cached_input_price": (model.cached_input_price, theirs.cache_read_mtok),
        "cache_write_price": (model.cache_write_price, theirs.cache_write_mtok),
        "output_price": (model.output_price, theirs.output_mtok),
    }
    asked = {
        key: (plain if ours is None else ours, float(getattr(price, "base", price)) * rate)
        for key, (ours, price) in pairs.items()
        if price is not None
    }
    return {key: both for key, both in asked.items() if abs(both[0] - both[1]) > both[1] / 1000}
