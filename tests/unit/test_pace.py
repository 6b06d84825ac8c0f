"""Few jobs are listened to at once; many take turns together."""

import asyncio

import pytest

from workers.pace import LONGEST, SHORTEST, TURN, Pace


async def turns(jobs: int, times: int) -> float:
    """Seconds that so many turns of one of so many jobs take."""
    pace, loop = Pace(range(jobs)), asyncio.get_running_loop()
    began = loop.time()
    for _ in range(times):
        await asyncio.wait_for(pace.turn(), 10)
    return loop.time() - began


async def test_few_never_wait() -> None:
    """There is not even a turn of the loop between two readings."""
    pace = Pace(range(round(SHORTEST / TURN) - 1))
    with pytest.raises(StopIteration):
        pace.turn().send(None)


@pytest.mark.parametrize("jobs, pause", [(50, 50 * TURN), (100_000, LONGEST)])
async def test_many_wait_longer_but_never_long(jobs: int, pause: float) -> None:
    """In proportion to how many they are, up to what a reader would notice."""
    assert await turns(jobs, 3) >= 3 * pause * 0.9


async def test_those_who_wait_go_on_together() -> None:
    """Also when one of them is stopped meanwhile."""
    pace = Pace(range(100))
    waiting = [asyncio.create_task(pace.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()

    await asyncio.wait_for(waiting[1], 10)

    assert waiting[0].cancelled()
    assert waiting[2].done()
