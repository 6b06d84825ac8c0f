"""The jobs of one hint: tried side by side as far as there are slots, else one after another."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import structlog

from workers import attempts
from workers.bench import Bench

log = structlog.get_logger()

Spare = Callable[[], AbstractAsyncContextManager[bool]]
"""Lends another slot, if one is free; see `workers.pool`."""


async def run(bench: Bench, job_ids: Sequence[str], spare: Spare) -> None:
    """Try the jobs of a hint, the first of them in the slot that the hint has."""
    began = time.monotonic()
    if len(job_ids) == 1:
        await attempts.run(bench, job_ids[0], since=began)
        return
    left = deque(job_ids)

    async def work() -> None:
        while left:
            try:
                await attempts.run(bench, left.popleft(), since=began)
            except Exception:  # a bug of ours; the others know nothing of it
                log.exception("attempt_failed")

    async def help() -> None:
        async with spare() as lent:
            if lent:
                await work()

    # All of them are tasks, so that a cancel reaches each.
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work())
        for _ in job_ids[1:]:
            tasks.create_task(help())
