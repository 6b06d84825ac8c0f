"""`sluice doctor --audit`: is everything in the database as it must be?"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli.failure import FAILED
from cli.screen import note, print_table

if TYPE_CHECKING:
    from shared.flaws import Report


def audit(as_json: bool) -> None:
    """Check every row, print what is broken, and exit with 1 when anything is."""
    from cli import configuration
    from cli.database import opened
    from shared.audit import examine
    from shared.settings import StoreSettings

    settings = configuration.read(StoreSettings)
    with opened(settings) as engine, _progress() as on_progress:
        report = examine(engine, on_progress)
    if as_json:
        typer.echo(json.dumps(_plain(report)))
    else:
        _show(report)
    if report.broken:
        raise typer.Exit(FAILED)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Shows how many of how many jobs are done, on a terminal; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("jobs", total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield on_progress


def _plain(report: "Report") -> dict[str, object]:
    counts = {"checked": report.checked, "broken": report.broken, "passing": report.passing}
    return {**counts, "flaws": [asdict(flaw) for flaw in report.flaws]}


def _show(report: "Report") -> None:
    if report.flaws:
        print_table(
            ("rule", "where", "what is wrong"),
            [(flaw.rule, flaw.subject, flaw.sentence) for flaw in report.flaws],
        )
    checked = ", ".join(f"{count:,} {what}" for what, count in report.checked.items())
    if report.passing:
        counts = _counts(report.passing)
        note(f"May pass by itself while the service runs: {counts}. Look again in a minute.")
    if report.broken:
        note(f"Checked {checked}. Broken: {_counts(report.broken)}.")
    else:
        typer.echo(f"Nothing is broken. Checked {checked}.")


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {count:,}×" for rule, count in sorted(found.items()))
