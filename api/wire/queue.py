"""The queue as the wire shows it, and what is left of a caller's limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.meters import Reading
from shared.lanes import Pace


def queue_object(
    depths: Mapping[str, int], paces: Sequence[Pace], readings: Sequence[Reading]
) -> dict[str, Any]:
    """Every lane, and every limit that holds for the caller; times are seconds."""
    return {
        "object": "queue",
        "lanes": [_lane(depths.get(pace.lane.value, 0), pace) for pace in paces],
        "limits": [reading.shown() for reading in readings],
    }


def _lane(depth: int, pace: Pace) -> dict[str, Any]:
    return {
        "lane": pace.lane.value,
        "depth": depth,
        "running": pace.running,
        "drained_per_minute": round(pace.drained, 1),
        "wait": {"p50": _seconds(pace.wait(0.5)), "p90": _seconds(pace.wait(0.9))},
    }


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
