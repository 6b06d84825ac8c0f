"""What the commands print: tables, moments, notes that leave stdout to the result."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import typer


def note(text: str) -> None:
    """Say something that is not the result: progress, a state, advice. Goes to stderr."""
    typer.secho(text, err=True, dim=True)


def step(text: str) -> None:
    """One line of progress of `sluice up`."""
    typer.echo(f"{typer.style('sluice', fg=typer.colors.CYAN, bold=True)} {text}")


def block(text: str) -> None:
    """Several lines that must not be missed between the lines of a log."""
    rule = typer.style("─" * 72, fg=typer.colors.CYAN)
    typer.echo(f"\n{rule}\n{text}\n{rule}\n")


def moment(seconds: int | None) -> str:
    """Unix seconds as local time; empty for None."""
    return (
        ""
        if seconds is None
        else f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; in a pipe one tab-separated line a row, for other programs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # never markup: a cell may hold brackets
    console.print(table)
