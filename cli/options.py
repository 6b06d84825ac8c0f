"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Final

import typer

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_HOME: Final = Path(".sluice")
MOST: Final = 10**12
"""Of anything in a minute."""

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="SLUICE_URL", help="Where the API is.", show_default=DEFAULT_URL),
]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="SLUICE_API_KEY", help="Your key.")]
Home = Annotated[
    Path, typer.Option("--home", envvar="SLUICE_HOME", help="Where `sluice up` keeps its state.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

RequestsPerMinute = Annotated[
    int | None, typer.Option("--requests-per-minute", min=0, max=MOST, help="0 is no limit.")
]
TokensPerMinute = Annotated[
    int | None,
    typer.Option("--tokens-per-minute", min=0, max=MOST, help="In and out; 0 is no limit."),
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", min=0, max=MOST, help="Requests open at once; 0 is no limit."),
]


Running = Annotated[
    int | None,
    typer.Option("--running", min=0, max=MOST, help="Jobs that run at once; 0 is no limit."),
]
Weight = Annotated[
    int | None,
    typer.Option("--weight", min=0, max=100, help="Its share when jobs wait; 0 is the usual, 1."),
]


def limits_of(before: dict[str, int] | None, **given: int | None) -> dict[str, int] | None:
    """What was set before with what is given now; 0 takes a limit away."""
    now = dict(before or {}) | {name: most for name, most in given.items() if most is not None}
    return {name: most for name, most in now.items() if most} or None
