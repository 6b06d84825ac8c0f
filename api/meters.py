"""How far a caller's limits are used up, and how that is told: in headers, errors and lists.

What is allowed in a minute is a bucket that refills evenly. It is measured in time: how long it
takes to be full again, 60 s when it is empty. So one number does for a limit of any size, and a
limit that is changed keeps its share.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal

from shared.buckets import MINUTE, share
from shared.catalog import Catalog, Model
from shared.errors import ModelNotFound, RateLimited
from shared.limits import Limits
from shared.places import Taken

ONE_ENDS: Final = 1_000_000
"""Microseconds after which it may be worth asking again for one of so many at once."""

Unit = Literal["requests_per_minute", "tokens_per_minute", "concurrency"]
REQUESTS: Final = "requests_per_minute"
TOKENS: Final = "tokens_per_minute"
CONCURRENCY: Final = "concurrency"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits, and whose they are."""

    scope: Literal["key", "account", "model"]
    name: str
    """The key's id or the model's name."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class Want:
    """What is asked of limits."""

    requests: int = 0
    tokens: int = 0
    concurrency: int = 0

    def __add__(self, other: "Want") -> "Want":
        return Want(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.concurrency + other.concurrency,
        )


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit, and what is wanted of it."""

    bounds: Bounds
    unit: Unit
    key: str
    """Where Redis keeps it, if it is a bucket."""
    limit: int
    wanted: int

    @property
    def room(self) -> int:
        """What there is when nothing is used: microseconds of a bucket's refill, or a count."""
        return self.limit if self.unit == CONCURRENCY else MINUTE

    def share(self, wanted: int) -> int:
        """So much of the limit, in the measure of `room`."""
        return wanted if self.unit == CONCURRENCY else share(wanted, self.limit)


def bounds_of(model: Model) -> list[Bounds]:
    """Those of a model, if it has limits; the models of a pattern share the pattern's."""
    return [] if model.limits is None else [Bounds("model", model.entry, model.limits)]


def meters(account_id: str, wants: Mapping[Bounds, Want]) -> list[Meter]:
    """A meter for each limit that is set; buckets come before counts."""
    found: list[Meter] = []

    def add(unit: Unit, bounds: Bounds, limit: int | None, wanted: int) -> None:
        if limit is not None:
            # One hash tag for an account: a cluster keeps all that one script needs together.
            key = f"sluice:{{{account_id}}}:{unit}:{bounds.scope}:{bounds.name}"
            found.append(Meter(bounds, unit, key, limit, wanted))

    for bounds, want in wants.items():
        add(REQUESTS, bounds, bounds.limits.requests_per_minute, want.requests)
    for bounds, want in wants.items():
        add(TOKENS, bounds, bounds.limits.tokens_per_minute, want.tokens)
    for bounds, want in wants.items():
        add(CONCURRENCY, bounds, bounds.limits.concurrency, want.concurrency)
    return found


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a meter is."""

    meter: Meter
    used: int
    """In the measure of `Meter.room`."""

    @property
    def remaining(self) -> int:
        """What is left of the limit."""
        left = (self.meter.room - self.used) * self.meter.limit // self.meter.room
        return max(0, left)

    @property
    def before(self) -> "Reading":
        """How far it was before what is wanted was taken."""
        return replace(self, used=self.used - self.meter.share(self.meter.wanted))

    @property
    def full_in(self) -> float | None:
        """Seconds until nothing of a bucket is used any more; None for a count."""
        return None if self.meter.unit == CONCURRENCY else self.used / 1_000_000

    @property
    def wait(self) -> int:
        """Microseconds until what is wanted may fit; 0 when it does, or nothing is wanted."""
        if not self.meter.wanted:
            return 0
        over = self.used + self.meter.share(self.meter.wanted) - self.meter.room
        return ONE_ENDS if over > 0 and self.meter.unit == CONCURRENCY else max(0, over)

    def shown(self) -> dict[str, Any]:
        """As the wire lists it."""
        meter = self.meter
        return {
            "scope": meter.bounds.scope,
            "model": meter.bounds.name if meter.bounds.scope == "model" else None,
            "unit": meter.unit,
            "limit": meter.limit,
            "remaining": self.remaining,
            "reset": self.full_in,
        }


def counted(counts: Iterable[Meter], taken: Taken, catalog: Catalog) -> list[Reading]:
    """How far the limits on what is open at once are, when these places are taken."""

    def holds_for(bounds: Bounds, key_id: str | None, model: str) -> bool:
        if bounds.scope == "model":
            with suppress(ModelNotFound):  # it was on offer when the job came
                return catalog.find(model).entry == bounds.name
            return False
        return bounds.scope == "account" or bounds.name == key_id

    return [
        Reading(meter, sum(n for named, n in taken.items() if holds_for(meter.bounds, *named)))
        for meter in counts
    ]


def headers(readings: Sequence[Reading]) -> dict[str, str]:
    """OpenAI's `x-ratelimit-…` and the IETF's `RateLimit`, of the tightest limit of each kind."""
    shown: dict[str, str] = {}
    left, policy = [], []
    for name, unit in (("requests", REQUESTS), ("tokens", TOKENS)):
        of_kind = [reading for reading in readings if reading.meter.unit == unit]
        if of_kind:
            tightest = min(of_kind, key=lambda reading: (reading.remaining, reading.meter.limit))
            limit, remaining, seconds = tightest.meter.limit, tightest.remaining, tightest.full_in
            assert seconds is not None
            shown[f"x-ratelimit-limit-{name}"] = str(limit)
            shown[f"x-ratelimit-remaining-{name}"] = str(remaining)
            shown[f"x-ratelimit-reset-{name}"] = f"{seconds:.3f}s"
            left.append(f'"{name}";r={remaining};t={math.ceil(seconds)}')
            policy.append(f'"{name}";q={limit};w=60')
    if left:
        shown |= {"ratelimit": ", ".join(left), "ratelimit-policy": ", ".join(policy)}
    return shown


def refusal(readings: Sequence[Reading]) -> RateLimited:
    """The error for readings that do not fit: it names the limit that is longest in the way."""
    worst = max(readings, key=lambda reading: reading.wait)
    seconds = worst.wait / 1_000_000
    told = {"retry-after-ms": str(math.ceil(worst.wait / 1000))}
    return _refused(worst.meter, f"try again in {seconds:.1f} s", seconds, readings, told)


def impossible(wanted: Sequence[Meter]) -> RateLimited | None:
    """The error when more is wanted than a limit ever has; no wait would help."""
    for meter in wanted:
        if meter.wanted > meter.limit:
            said = f"this request needs {meter.wanted:,}, so it never fits"
            return _refused(meter, said, None, (), {"x-should-retry": "false"})
    return None


def _refused(
    meter: Meter,
    advice: str,
    seconds: float | None,
    readings: Sequence[Reading],
    told: Mapping[str, str],
) -> RateLimited:
    scope, unit = meter.bounds.scope, meter.unit
    words = "at once" if unit == CONCURRENCY else unit.replace("_", " ")
    return RateLimited(
        f"The limit of this {scope} is {meter.limit:,} {words}; {advice}.",
        retry_after=timedelta(seconds=60 if seconds is None else seconds),
        details={"scope": scope, "unit": unit, "limit": meter.limit, "reset": seconds},
        headers={**headers(readings), **told},
    )
