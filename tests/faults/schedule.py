"""Which fault strikes what, when and for how long: drawn from a seed, the same for every replay."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Target = Literal["api", "worker", "beat", "redis", "database"]
PLACES: dict[Target, int] = {"api": 2, "worker": 3, "beat": 1, "redis": 1, "database": 1}
"""How many of each a run has."""
FIRST_AT = 1.0
GAPS = (0.4, 1.8)
"""Seconds between two strikes, least and most."""
RECOVERS_IN = 3.0
"""Seconds for which what was struck is left alone, for a replacement to start."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault, as far as the schedule needs to know it."""

    name: str
    target: Target
    lasts: tuple[float, float] = (0.0, 0.0)
    """Seconds, least and most."""
    databases: tuple[str, ...] = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Strike:
    """One fault of a run; `at` counts seconds from its start."""

    at: float
    kind: str
    place: int
    """Which one of its target's."""
    lasts: float


def plan(seed: int, seconds: float, kinds: Sequence[Kind]) -> list[Strike]:
    """The strikes of a run, in order.

    Kinds are dealt like cards, so that each comes once before any comes again. Nothing is struck
    by two at once, but a worker may well be frozen while the database is away.
    """
    chance = random.Random(seed)
    free = {(target, place): 0.0 for target, count in PLACES.items() for place in range(count)}
    strikes: list[Strike] = []
    deck: list[Kind] = []
    now = FIRST_AT
    while now < seconds:
        deck = deck or chance.sample(list(kinds), len(kinds))
        kind = _playable(deck, free, now)
        if kind is not None:
            deck.remove(kind)
            place = chance.choice(_places(kind, free, now))
            lasts = round(chance.uniform(*kind.lasts), 2)
            free[kind.target, place] = now + lasts + RECOVERS_IN
            strikes.append(Strike(round(now, 2), kind.name, place, lasts))
        now += chance.uniform(*GAPS)
    return strikes


def _playable(
    deck: Iterable[Kind], free: dict[tuple[Target, int], float], now: float
) -> Kind | None:
    return next((kind for kind in deck if _places(kind, free, now)), None)


def _places(kind: Kind, free: dict[tuple[Target, int], float], now: float) -> list[int]:
    return [place for place in range(PLACES[kind.target]) if free[kind.target, place] <= now]
