"""What was found a moment ago, for those who may be told something that old."""

import time
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

T = TypeVar("T")

LASTS: Final = 1.0
"""Seconds."""
MOST: Final = 1_000
"""Findings that are kept before those that have aged are dropped."""


class Lately:
    """Findings of the last second, by what was asked; any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: dict[Hashable, tuple[float, Any]] = {}

    def of(self, what: Hashable, find: Callable[[], T]) -> T:
        """What `find` finds, or what was found for the same a moment ago."""
        now = self._clock()
        known: tuple[float, T] | None = self._found.get(what)
        if known is not None and now - known[0] < LASTS:
            return known[1]
        if len(self._found) >= MOST:
            self._found = {
                name: each for name, each in list(self._found.items()) if now - each[0] < LASTS
            }
        found = find()
        self._found[what] = now, found
        return found
