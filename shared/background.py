"""Tasks beside the one that started them, and their end.

One cancel may go unheard: Python 3.11's `wait_for`, which redis-py sends with, forgets one that
comes in the moment in which what it waits for is done.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from shared.errors import Unavailable

log = structlog.get_logger()

CANCEL_EVERY: Final = 0.5
"""Seconds between two cancels of a task that has not ended."""
REST: Final = 10
"""What looks at the database leaves it so many times as long as it took."""


async def again(look: Callable[[], Awaitable[None]], *, every: float) -> None:
    """Look every so many seconds, for ever; a look that fails is made up for by the next."""
    while True:
        began = time.monotonic()
        try:
            await look()
        except Unavailable:
            pass  # the seam has noted it in the log
        except Exception:
            log.exception("look_broke")
        await asyncio.sleep(max(every, REST * (time.monotonic() - began)))


def cancel(task: "asyncio.Future[Any]") -> None:
    """Cancel a task, again and again until it has ended."""
    if not task.done():
        task.cancel()
        asyncio.get_running_loop().call_later(CANCEL_EVERY, cancel, task)


async def stop(*tasks: "asyncio.Future[Any] | None") -> None:
    """Cancel these, and return when they have ended, however they did."""
    ending = [task for task in tasks if task is not None]
    for task in ending:
        cancel(task)
    await asyncio.gather(*ending, return_exceptions=True)


async def over(task: asyncio.Task[Any]) -> None:
    """Wait until a task is over, however it ends. `asyncio.wait` takes thrice as long for one."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
    await ended
