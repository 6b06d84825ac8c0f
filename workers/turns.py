"""Whose turn it is: places are dealt by virtual time, so that one line never waits for a crowd."""

import heapq
from collections.abc import Iterable, Mapping
from typing import Final

EQUAL: Final[Mapping[str, float]] = {}


class Turns:
    """Remembers how much each has been dealt, as far as that still matters."""

    def __init__(self) -> None:
        self._dealt: dict[str, float] = {}
        self._floor = 0.0
        """Where somebody begins who has not been here: waiting earns no credit."""

    def among(self, names: Iterable[str], weights: Mapping[str, float] = EQUAL) -> "Round":
        """Deal places to these, in proportion to their weight, 1 unless given."""
        return Round(self, names, weights)

    def begin(self, name: str) -> float:
        """Where somebody stands who takes part now."""
        return max(self._dealt.get(name, 0.0), self._floor)

    def charge(self, name: str, at: float, then: float) -> None:
        """It stood there, got a place, and stands there now."""
        self._floor = at
        self._dealt[name] = then

    def forget(self) -> None:
        """Drop those who stand where a newcomer would."""
        self._dealt = {name: at for name, at in self._dealt.items() if at > self._floor}


class Round:
    """Places being dealt, one after the other, to those who still take part."""

    def __init__(self, turns: Turns, names: Iterable[str], weights: Mapping[str, float]) -> None:
        turns.forget()
        self._turns = turns
        self._weights = weights
        self._queue = [(turns.begin(name), name) for name in names]
        heapq.heapify(self._queue)

    @property
    def next(self) -> str | None:
        """Whose turn it is; None when nobody takes part any more."""
        return self._queue[0][1] if self._queue else None

    def dealt(self) -> None:
        """The one whose turn it was got a place."""
        at, name = self._queue[0]
        then = at + 1 / self._weights.get(name, 1.0)
        self._turns.charge(name, at, then)
        heapq.heapreplace(self._queue, (then, name))

    def leave(self) -> None:
        """The one whose turn it was takes no place now."""
        heapq.heappop(self._queue)
