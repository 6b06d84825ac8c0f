"""The end of tasks in the background."""

import asyncio

import pytest

from shared import background
from shared.errors import Unavailable


async def hard_of_hearing(cancels: int) -> str:
    """Does not hear so many cancels, as one that waits in Python 3.11's `wait_for` may not."""
    for _ in range(cancels):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    await asyncio.Event().wait()
    return "never"


async def test_a_cancel_that_went_unheard_is_repeated() -> None:
    """Whatever swallowed the first one, the task ends."""
    tasks = [asyncio.create_task(hard_of_hearing(cancels)) for cancels in (0, 1)]
    await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await background.stop(*tasks, None)

    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_has_ended_is_left_alone() -> None:
    """Its failure was its own, and is nobody's now."""

    async def fails() -> None:
        raise ZeroDivisionError

    task = asyncio.create_task(fails())
    await asyncio.wait({task})

    await background.stop(task)

    assert not task.cancelled()


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError()])
async def test_a_look_that_fails_is_followed_by_another(error: Exception) -> None:
    """The database was away, or we had a bug: what is watched must not stand still for ever."""
    looks, seen = 0, asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise error
        seen.set()

    task = asyncio.create_task(background.again(look, every=0.0))
    async with asyncio.timeout(10):
        await seen.wait()
    await background.stop(task)
