"""Whose turn it is: places are dealt by virtual time, so that one line never waits for a crowd."""

import heapq
from collections.abc import Mapping
from typing import Final

EQUAL: Final[Mapping[str, float]] = {}


class Turns:
    """Remembers how much each has been dealt, as far as that still matters."""

    def __init__(self) -> None:
        self._dealt: dict[str, float] = {}
        self._floor = 0.0
        """Where somebody begins who has not been here: waiting earns no credit."""

    def deal(
        self, wanting: Mapping[str, int], room: int, weights: Mapping[str, float] = EQUAL
    ) -> dict[str, int]:
        """How many of `room` places each of those who want some gets; none is left over in vain.

        In the long run everybody gets places in proportion to their weight, 1 unless given.
        """
        if not wanting:
            return {}
        turns = [(max(self._dealt.get(name, 0.0), self._floor), name) for name in wanting]
        heapq.heapify(turns)
        dealt = dict.fromkeys(wanting, 0)
        while room > 0 and turns:
            at, name = heapq.heappop(turns)
            dealt[name] += 1
            room -= 1
            self._floor = at
            self._dealt[name] = at + 1 / weights.get(name, 1.0)
            if dealt[name] < wanting[name]:
                heapq.heappush(turns, (self._dealt[name], name))
        self._dealt = {name: at for name, at in self._dealt.items() if at > self._floor}
        return {name: places for name, places in dealt.items() if places}
