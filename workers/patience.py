"""Asking the database again while it is away: a COMMIT whose answer was lost may have landed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from shared.errors import Unavailable

R = TypeVar("R")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two tries."""


async def insist(ask: Callable[[], Awaitable[R]], *, worth_it: Callable[[], bool]) -> R | None:
    """What `ask` answers, once the database is there; None when it is no longer worth asking."""
    pause = FIRST_PAUSE
    while worth_it():
        with suppress(Unavailable):  # the seam has noted it in the log
            return await ask()
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)
    return None
