"""The commands of the `sluice` CLI, as Typer built them."""

import re
import shlex
from typing import Any

import typer


def unknown(line: str) -> str | None:
    """Why a shell line's `sluice …` cannot work; None when it can, or there is none."""
    found = re.search(r"^(?:docker compose exec \w+ |\.venv/bin/)?sluice( [a-z].*)?$", line)
    return why_unknown(shlex.split(found[1] or "", comments=True)) if found else None


def why_unknown(words: list[str]) -> str | None:
    """Why `sluice` followed by these words cannot work; None when it can."""
    from cli.main import app

    command: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return f"no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    strange = [
        word
        for word in rest
        if word.startswith("--") and word.partition("=")[0] not in {"--", *options}
    ]
    return f"no option {strange[0]!r}" if strange else None
