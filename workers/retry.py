"""What follows a failed attempt: another one after a pause, or the end."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from shared.errors import Fault, ServiceError
from shared.outcomes import Failed, Retry

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
LONGEST_ASKED_PAUSE: Final = timedelta(seconds=60)
"""No upstream makes a job wait longer than this, whatever its Retry-After says."""
JITTER: Final = 0.2
DOUBLINGS: Final = 16


def after_failure(
    error: ServiceError,
    *,
    tries: int,
    max_attempts: int,
    spoke: bool,
    read_live: bool,
    chance: Callable[[], float] = random.random,
) -> Retry | Failed:
    """Decide after the `tries`-th attempt that counts; `chance` gives numbers from 0 to 1.

    A reader who watches live and has seen text cannot unsee it: then there is no other attempt.
    """
    fault = Fault.of(error)
    if not error.retryable or tries >= max_attempts or (spoke and read_live):
        return Failed(fault)
    return Retry(fault, after=_pause(error, tries, chance()))


def _pause(error: ServiceError, tries: int, chance: float) -> timedelta:
    if error.retry_after is not None:
        return min(max(error.retry_after, timedelta(0)), LONGEST_ASKED_PAUSE)
    pause = FIRST_PAUSE * 2 ** min(tries - 1, DOUBLINGS)
    spread = 1 + JITTER * (2 * chance - 1)
    return timedelta(seconds=min(pause * spread, LONGEST_PAUSE))
