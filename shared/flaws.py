"""What an audit says: what was looked at, and what is wrong with it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

SHOWN: Final = 20
"""Flaws of one rule that a report spells out."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that should not be."""

    rule: str
    subject: str
    """The row it is about."""
    sentence: str
    passing: bool = False
    """It may pass by itself while the service runs, so it breaks nothing yet."""


@dataclass(slots=True)
class Report:
    """What was looked at, and what is wrong with it."""

    checked: Counter[str] = field(default_factory=Counter)
    """How many of what."""
    broken: Counter[str] = field(default_factory=Counter)
    """How many flaws each rule has found, without those that may pass."""
    passing: Counter[str] = field(default_factory=Counter)
    flaws: list[Flaw] = field(default_factory=list)
    """The first of each rule."""

    def note(self, flaw: Flaw) -> None:
        """Count a flaw, and keep it if it is one of the first of its rule."""
        counts = self.passing if flaw.passing else self.broken
        counts[flaw.rule] += 1
        if counts[flaw.rule] <= SHOWN:
            self.flaws.append(flaw)


class Page(NamedTuple):
    """What one read has shown."""

    checked: int
    flaws: list[Flaw]
    last: Any
    """Where the next one goes on; None when this was the last."""
