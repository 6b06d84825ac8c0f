"""What was found a moment ago, for those who may be told something that old."""

import time
from collections.abc import Callable, Hashable
from math import inf
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

LASTS: Final = 1.0
"""Seconds."""
MOST: Final = 1_000
"""Findings that are kept before those that have aged are dropped."""
NEVER: Final = (-inf, None)


class Forgotten(LookupError):
    """It was not found out lately."""


class Lately:
    """Findings of the last second, by what was asked; any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: dict[Hashable, tuple[float, Any]] = {}

    def of(self, what: Hashable, find: Callable[[], T]) -> T:
        """What `find` finds, or what was found for the same a moment ago."""
        now = self._clock()
        found_at, found = self._found.get(what, NEVER)
        if now - found_at < LASTS:
            return cast(T, found)
        if len(self._found) >= MOST:
            self._found = {
                name: each for name, each in list(self._found.items()) if now - each[0] < LASTS
            }
        new = find()
        self._found[what] = now, new
        return new

    def known(self, what: Hashable) -> Any:
        """What was found for that a moment ago; raises `Forgotten` if nothing was."""
        found_at, found = self._found.get(what, NEVER)
        if self._clock() - found_at >= LASTS:
            raise Forgotten(what)
        return found
