"""`sluice models`: what is on offer, at which price, and whether it can be had now."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import drift
from cli.failure import FAILED, Failure
from cli.options import DEFAULT_HOME, ApiKey, AsJson, Home, Url


def models(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """List the models that you may use. Prices are credits per million tokens.

    Example: `sluice models --json`
    """
    if context.invoked_subcommand is not None:
        return
    from cli.client import Address, call

    with Address.find(url, api_key, home).connect() as client:
        found = call(client, "GET", "/v1/models")["data"]
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)


def check(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Else the one SLUICE_CATALOG names.")
    ] = None,
    credits_per_dollar: Annotated[
        float, typer.Option(min=0.001, help="What a credit is, to compare prices.")
    ] = drift.CREDITS_PER_DOLLAR,
) -> None:
    """Check a catalogue, and compare its prices with those of the package genai-prices.

    A price that differs is shown and is no error. Example: `sluice models check models.toml`
    """
    from cli import configuration
    from cli.screen import note
    from shared import catalog
    from shared.settings import StoreSettings

    path = path or configuration.read(StoreSettings).catalog
    try:
        loaded = catalog.load(path)
    except catalog.CatalogError as error:
        raise Failure(str(error), code=FAILED) from None
    typer.echo(f"{path}: {len(loaded.models)} models, {len(loaded.upstreams)} upstreams, no fault.")
    try:
        compared = list(drift.compare(loaded, credits_per_dollar=credits_per_dollar))
    except Failure as failure:
        note(failure.message)
        return
    for line in filter(None, map(_drift, compared)):
        typer.echo(line)
    same = sum(1 for one in compared if one.counterpart and not one.differences)
    typer.echo(f"{same} of {len(compared)} models with a price cost what genai-prices knows.")


def _drift(one: drift.Compared) -> str:
    if one.counterpart is None:
        return f"{one.model}: not known to genai-prices"
    apart = [f"{key} {ours:g}, not {theirs:g}" for key, (ours, theirs) in one.differences.items()]
    return f"{one.model}: {'; '.join(apart)} (of {one.counterpart})" if apart else ""


def _show(found: list[dict[str, Any]]) -> None:
    from cli.screen import print_table

    print_table(
        (
            "model",
            "upstream",
            "context",
            "output",
            "available",
            "breaker",
            "price in",
            "cached",
            "cache write",
            "out",
            "fallbacks",
        ),
        [
            (
                model["id"],
                model["owned_by"],
                str(model["context_window"]),
                str(model["max_output_tokens"]),
                "yes" if model["available"] else "no",
                model["breaker"],
                *_prices(model),
                ", ".join(model["fallbacks"]),
            )
            for model in found
        ],
    )


def _prices(model: dict[str, Any]) -> list[str]:
    if model["free"]:
        return ["free", "", "", ""]
    names = ("input_price", "cached_input_price", "cache_write_price", "output_price")
    return ["" if model[name] is None else f"{model[name]:g}" for name in names]
