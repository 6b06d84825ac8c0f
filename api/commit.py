"""Commit what a caller submits; in doubt, find out whether that took place."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from api.front import Front
from shared.db import DatabaseUnavailable
from shared.errors import IdempotencyInFlight
from shared.keys import KeyChanged

LOOK_EVERY: Final = 0.1
"""Seconds between two looks at a commit."""
DOUBT_WITHIN: Final = 10.0
"""Seconds in which to learn what became of it, or of that of the same request elsewhere."""

R = TypeVar("R")


async def commit(
    front: Front, account_id: str, first: Awaitable[R], *, again: Callable[[Session], R]
) -> R:
    """What the `first` try makes for the account, or, in doubt, `again`.

    By then it may have been made already, and is to be found. Raises what they raise, or
    `Unavailable`.
    """
    try:
        return await first
    except DatabaseUnavailable as error:
        if not error.maybe_committed:
            raise
        doubt: Exception = error
    except IdempotencyInFlight as error:
        doubt = error
    try:
        async with asyncio.timeout(DOUBT_WITHIN):
            while True:
                await asyncio.sleep(LOOK_EVERY)
                # A collision means that the doubtful commit took place while we tried again. When a
                # key was changed, it may take place yet: nothing else may be tried.
                with suppress(DatabaseUnavailable, IdempotencyInFlight, IntegrityError, KeyChanged):
                    return await front.tx.by(account_id, again)
    except TimeoutError:
        raise doubt from None
