"""How a batch comes along, for the eye: a bar on a terminal, lines elsewhere, a summary."""

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from cli.client import MOST_PROBLEMS
from cli.screen import note

SELDOM: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""
LATELY: Final = 30.0
"""Seconds over which tokens are counted for their speed."""


class Pace:
    """How fast a number has been growing lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, number: int) -> float | None:
        """Its growth a second, now that it has come to this; None: that is not known yet."""
        now = self._clock()
        self._seen.append((now, number))
        while now - self._seen[0][0] > LATELY:
            self._seen.popleft()
        since, first = self._seen[0]
        return (number - first) / (now - since) if now - since >= 1 else None


class Display:
    """Shows on stderr how a batch comes along; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._terminal = console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not self._terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._pace = Pace()
        self._told = -SELDOM

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: dict[str, Any]) -> None:
        """Show this; without a terminal only if it is time again."""
        said = sentence(progress, self._pace.of(_tokens(progress)))
        counts = progress["counts"]
        self._bar.update(
            self._task, description=said, total=counts["total"], completed=_done(counts)
        )
        if not self._terminal and time.monotonic() - self._told >= SELDOM:
            self._told = time.monotonic()
            note(said)


def sentence(progress: dict[str, Any], tokens_per_second: float | None = None) -> str:
    """How far a batch is, in one line."""
    counts = progress["counts"]
    speed = "" if tokens_per_second is None else f", {tokens_per_second:,.0f} a second"
    said = [
        progress.get("status_reason") or progress["status"],
        f"{_done(counts):,} of {counts['total']:,} done",
        f"{_failed(counts):,} failed",
        f"{_tokens(progress):,} tokens{speed}",
        f"{progress['cost']['credits']:g} credits",
    ]
    if (left := progress.get("eta_seconds")) is not None:
        said.append(f"{timedelta(seconds=left)} left")
    return " · ".join(said)


def summary(batch: dict[str, Any]) -> str:
    """A whole batch: how far it is, what its lines failed of, what is wrong with its input."""
    said = [f"{batch['id']} · {sentence(batch)}"]
    for one in batch["error_summary"] or []:
        sample = f": {one['sample']}" if one["sample"] else ""
        said.append(f"  {one['count']:,} × {one['code']}{sample}")
    for one in (batch["errors"] or {"data": []})["data"][:MOST_PROBLEMS]:
        said.append(f"  line {one['line']}: {one['message']}")
    return "\n".join(said)


def _done(counts: dict[str, int]) -> int:
    return counts["completed"] + _failed(counts)


def _failed(counts: dict[str, int]) -> int:
    return counts["failed"] + counts["cancelled"] + counts["expired"]


def _tokens(progress: dict[str, Any]) -> int:
    tokens: int = (progress["usage"] or {}).get("output_tokens", 0)
    return tokens
