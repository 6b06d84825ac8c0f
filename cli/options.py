"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Final

import typer

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_HOME: Final = Path(".sluice")

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="SLUICE_URL", help="Where the API is.", show_default=DEFAULT_URL),
]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="SLUICE_API_KEY", help="Your key.")]
Home = Annotated[
    Path, typer.Option("--home", envvar="SLUICE_HOME", help="Where `sluice up` keeps its state.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
