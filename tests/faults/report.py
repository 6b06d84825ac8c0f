"""Results as a table, for a terminal and for `docs/durability.md`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults.run import Result

DOCUMENT = Path(__file__).parents[2] / "docs" / "durability.md"
BEGIN, END = "<!-- runs -->", "<!-- end of runs -->"
SHOWN = 50
"""Violations of a run that are worth reading."""
COLUMNS = ["database", "seed", "jobs", "faults", "lost", "twice", "wrong", "told", "seconds"]


def table(results: Sequence[Result]) -> str:
    """A Markdown table of runs with a sum, and one of the faults they saw."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_row, results), _sum(results)]
    strikes = sum((result.strikes for result in results), Counter[str]())
    kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(strikes.items()))
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", f"Faults: {kinds}."])


def _line(result: Result) -> str:
    """A run in one line."""
    return ", ".join(f"{name} {value}" for name, value in zip(COLUMNS, _row(result), strict=True))


def account(result: Result) -> str:
    """A run in one line, and below it what went wrong."""
    found = [f"  {violation.charge}: {violation.what}" for violation in result.violations[:SHOWN]]
    if len(result.violations) > SHOWN:
        found.append(f"  … and {len(result.violations) - SHOWN} more")
    return "\n".join([_line(result), *found])


def write(results: Sequence[Result]) -> None:
    """Put the table between the two markers of the document."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n{table(results)}\n{END}{after}"
    DOCUMENT.write_text(text, encoding="utf-8")


def _row(result: Result) -> list[str]:
    return [result.database, str(result.seed), *(f"{number:,}" for number in _numbers(result))]


def _numbers(result: Result) -> list[int]:
    counts = [result.count(charge) for charge in ("lost", "twice", "wrong")]
    return [result.jobs, result.strikes.total(), *counts, result.told, round(result.seconds)]


def _sum(results: Sequence[Result]) -> list[str]:
    columns = zip(*map(_numbers, results), strict=True)
    return ["all", "", *(f"{sum(column):,}" for column in columns)]
