"""Figures as lines of a terminal, and as tables of `docs/performance.md`."""

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.figures import Figure
from bench.peers import PEERS

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
NAMES: Final = {"sqlite": "Sluice on SQLite", "postgresql": "Sluice on PostgreSQL"}

Tables = Mapping[str, Sequence[Figure]]
"""By whose they are: a database's name, or a peer's."""


def line(whose: str, figure: Figure) -> str:
    """One figure in one line."""
    goal = f"  (goal {figure.goal})" if figure.goal else ""
    return f"{whose:10}  {figure.what}: {figure.brief}{goal}  {figure.more}"


def write(tables: Tables) -> None:
    """Put them between the two markers of the document, with the machine they are from."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    found = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores shared by all, client "
        f"and upstream included, Linux, Python {platform.python_version()}."
    ]
    if others := [name for name in tables if name in PEERS]:
        found.append(f"### Beside others\n\n{_beside(tables, others)}")
    found += [
        f"### {NAMES[name]}\n\n{_table(tables[name])}" for name in tables if name not in others
    ]
    text = "\n\n".join([f"{before}{BEGIN}", *found, f"{END}{after}"])
    DOCUMENT.write_text(text, encoding="utf-8")


def _table(figures: Sequence[Figure]) -> str:
    return _rows(
        ["measure", "goal", "here", "more"],
        [[each.what, each.goal, each.brief, each.more] for each in figures],
    )


def _beside(tables: Tables, others: Sequence[str]) -> str:
    """What all were measured by, in a column each."""
    names = [*(name for name in tables if name not in others), *others]
    measured = [figure.what for figure in tables[others[0]]]
    by_name = {name: {figure.what: figure for figure in tables[name]} for name in names}
    heads = [NAMES.get(name) or PEERS[name].what for name in names]
    rows = []
    for what in measured:
        found = [by_name[name].get(what) for name in names]
        rows.append([what, *(figure.brief if figure else "" for figure in found)])
    return _rows(["", *heads], rows)


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(each) + " |" for each in lines)
