"""Prices beside those that the package genai-prices knows."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import drift
from cli.failure import FAILED
from cli.main import app
from shared import catalog
from shared.settings import PACKAGED_CATALOG

OURS = """
[upstreams.openai]
dialect = "openai"
base_url = "https://api.openai.com/v1"
[models.a]
upstream = "openai"
upstream_model = "gpt-4o"
context_window = 10
max_output_tokens = 5
input_price = 1_000_000
output_price = 2
[models.b]
upstream = "openai"
context_window = 10
max_output_tokens = 5
input_price = 1
output_price = 2
[models.c]
upstream = "openai"
context_window = 10
max_output_tokens = 5
free = true
[models."openai/*"]
upstream = "openai"
context_window = 10
max_output_tokens = 5
input_price = 1
output_price = 2
"""


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A catalogue with a price that is wrong, and one that nobody can check."""
    path = tmp_path / "models.toml"
    path.write_text(OURS, encoding="utf-8")
    return path


def test_every_price_we_ship_can_be_compared() -> None:
    """What they are is printed by `make prices`; that they can be found is for us to see to."""
    compared = list(drift.compare(catalog.load(PACKAGED_CATALOG, {})))

    assert len(compared) == 8
    assert [one.model for one in compared if one.counterpart is None] == []


def test_a_price_that_differs_is_shown_and_is_no_error(ours: Path) -> None:
    """With what the upstream asks, and for what; patterns and free models have nothing to say."""
    done = CliRunner().invoke(app, ["models", "check", str(ours)])

    assert done.exit_code == 0
    assert "a: input_price 1e+06, not 250" in done.output
    assert "(of openai:gpt-4o)" in done.output
    assert "b: not known to genai-prices" in done.output
    assert "0 of 2 models with a price" in done.output


def test_a_bad_catalogue_fails(ours: Path) -> None:
    """With every fault, and no comparison."""
    ours.write_text("models = 3", encoding="utf-8")

    done = CliRunner().invoke(app, ["models", "check", str(ours)])

    assert done.exit_code == FAILED
    assert "upstreams: is missing; set it" in done.output
