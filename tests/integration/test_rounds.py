"""The jobs of one hint: side by side where there are slots, and each in its own right."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared import streams
from shared.lifecycle import Lane
from shared.tables import Job
from tests.fakes.upstream import Say, WaitFor
from tests.shop import Shop
from workers import attempts, rounds


class Slots:
    """So many that can be lent, as the pool lends them."""

    def __init__(self, free: int) -> None:
        self.free = free

    @asynccontextmanager
    async def spare(self, within: float) -> AsyncIterator[bool]:
        """One more, if one is left."""
        lent = self.free > 0
        self.free -= lent
        yield lent
        self.free += lent


async def lines(shop: Shop, many: int) -> list[Job]:
    """Lines of a batch, as a worker sees them."""
    return [await shop.submit(lane=Lane.BATCH, batch_id="batch_1") for _ in range(many)]


@pytest.mark.parametrize("free, at_once", [(0, 1), (1, 2), (9, 4)])
async def test_as_many_run_at_once_as_there_are_slots(shop: Shop, free: int, at_once: int) -> None:
    """The hint's own and those that are lent; all of them end, one after another if need be."""
    let_go = threading.Event()
    shop.upstream.script("test", WaitFor(let_go), Say("Fine."))
    some = await lines(shop, 4)
    slots = Slots(free)
    task = asyncio.create_task(rounds.run(shop.bench, [job.id for job in some], slots.spare))

    async def called() -> bool:
        return len(shop.upstream.calls_of("test")) >= at_once

    await shop.until(called)
    assert len(shop.bench.hands) == at_once
    let_go.set()
    await task
    assert [(await shop.row(job)).status for job in some] == ["completed"] * 4
    assert slots.free == free


async def test_who_may_not_wait_goes_back(shop: Shop) -> None:
    """A job whose slot is free is begun; the others are hinted again, perhaps elsewhere."""
    let_go = threading.Event()
    shop.upstream.script("test", WaitFor(let_go), Say("Fine."))
    some = [await shop.submit() for _ in range(4)]
    hint = [job.id for job in some]
    task = asyncio.create_task(rounds.run(shop.bench, hint, Slots(1).spare, wait=False))

    async def looked_at() -> bool:
        rows = [await shop.row(job) for job in some]
        return sorted(row.status for row in rows if row.hinted_at is None) == [
            *["in_progress"] * 2,
            *["queued"] * 2,
        ]

    await shop.until(looked_at)
    let_go.set()
    await task
    assert len(shop.upstream.calls) == 2


async def test_what_has_not_begun_in_time_waits_for_another_turn(shop: Shop) -> None:
    """A task has time for one long try, not for several."""
    [job] = await lines(shop, 1)
    await attempts.run(shop.bench, job.id, since=time.monotonic() - 61)

    row = await shop.row(job)
    assert (row.status, row.attempt, row.hinted_at) == ("queued", 0, None)


async def test_a_line_leaves_nothing_in_redis(shop: Shop) -> None:
    """What it said is in the archive."""
    shop.upstream.script("test", Say("Fine."))
    [job] = await lines(shop, 1)
    row = await shop.run_to_the_end(job)

    assert (row.status, row.deltas > 0) == ("completed", True)
    assert await streams.last(shop.bench.redis, job.id) is None
    assert (await shop.response(job))["choices"][0]["message"]["content"] == "Fine."
