"""What was measured, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    goal: str
    value: str
    """With its unit."""
    more: str = ""
    """What else was seen: a rate, a limit, by which process."""
    wrong: str = ""
    """What went wrong; empty when nothing did."""

    @property
    def brief(self) -> str:
        """The value, and what went wrong."""
        return f"{self.value} {self.wrong}".strip()


def at(values: Sequence[float], part: float) -> float:
    """The value below which this part of them is; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def ms(seconds: float) -> str:
    """Milliseconds, with as many digits as there are to tell apart."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:,.0f} ms"
