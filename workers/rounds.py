"""The jobs of one hint: tried side by side as far as there are slots.

The others follow one after another, as lines of a batch do, or go back in a moment.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import structlog

from workers import attempts
from workers.bench import Bench

log = structlog.get_logger()

Spare = Callable[[float], AbstractAsyncContextManager[bool]]
"""Lends another slot, if one gets free in so many seconds; see `workers.pool`."""
MOMENT: Final = 1.0
"""Seconds for which those that may not wait look for a slot: of short jobs dozens end in that time,
and of long ones none."""


async def run(bench: Bench, job_ids: Sequence[str], spare: Spare, *, wait: bool = True) -> None:
    """Try the jobs of a hint, the first of them in the slot that the hint has.

    Those for which there is no slot in a moment are left to another hint, unless they may `wait`.
    """
    began = time.monotonic()
    if len(job_ids) == 1:
        await attempts.run(bench, job_ids[0], since=began)
        return
    left = deque(job_ids)
    # All of them are tasks, so that a cancel reaches each.
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_work(bench, left, began))
        for _ in job_ids[1:]:
            tasks.create_task(_help(bench, left, began, spare, wait=wait))


async def _work(bench: Bench, left: deque[str], began: float) -> None:
    """Try one after another of what is left."""
    while left:
        try:
            await attempts.run(bench, left.popleft(), since=began)
        except Exception:  # a bug of ours; the others know nothing of it
            log.exception("attempt_failed")


async def _help(bench: Bench, left: deque[str], began: float, spare: Spare, *, wait: bool) -> None:
    """The same beside the others, in another slot."""
    async with spare(0.0 if wait else MOMENT) as lent:
        if lent:
            await _work(bench, left, began)
        elif left and not wait:
            await bench.let_go([left.popleft()])
