"""Cancelled jobs whose upstream bills the whole answer: they end at once, the call goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from shared import jobs, leases, ledger, remains
from shared.outcomes import Cancelled, Said
from shared.prices import NANO, Prices
from shared.tables import Job
from tests import sqlite
from tests.factories import SAID, Sessions, claimed
from tests.fakes.upstream import End, Say, ScriptedUpstream, Stall, Step, Usage, WaitFor
from tests.shop import Shop, open_shop
from tests.stack import MODEL
from tests.valkey import Valkey
from workers import attempts
from workers.remainders import Remainders

SNAPSHOT = ["1000", "1000", "1000", "2000"]
PRICED = {"hold": NANO, "prices": {"test": SNAPSHOT}}
COUNTED = {"prompt_tokens": 3, "completion_tokens": 700, "total_tokens": 703}
LONG = timedelta(hours=1)
Opened = Callable[..., AbstractAsyncContextManager[Shop]]


@pytest.fixture
def opened(tmp_path: Path, redis_server: Valkey, upstream: ScriptedUpstream) -> Opened:
    """Opens a worker's bench that drains the calls of cancelled jobs."""
    url = sqlite.fresh(tmp_path)
    models = 'on_cancel = "drain"\n' + MODEL.format(name="test")

    def open_one(attempt_timeout: timedelta = LONG) -> AbstractAsyncContextManager[Shop]:
        limits = {"attempt_timeout": attempt_timeout, "silence_timeout": LONG}
        return open_shop(tmp_path, url, redis_server.url, upstream, models, **limits)

    return open_one


@pytest.fixture
async def shop(opened: Opened) -> AsyncIterator[Shop]:
    """Such a bench."""
    async with opened() as one:
        yield one


async def cancelled(shop: Shop, *steps: Step) -> Job:
    """A job that was cancelled while its upstream was busy with the second step."""
    await shop.bench.tx(ledger.grant, shop.account_id, NANO, note="test")
    job = await shop.submit(*steps, stream=True, **PRICED)
    task = asyncio.create_task(attempts.run(shop.bench, job.id))
    before, speaks = len(shop.upstream.calls), isinstance(steps[0], Say)

    async def busy() -> bool:
        at_work = shop.bench.hands.running.get(job.id)
        spoke = at_work is not None and at_work.transcript.spoke
        return spoke if speaks else len(shop.upstream.calls) > before

    await shop.until(busy)
    await shop.bench.tx(jobs.cancel, shop.account_id, job.id)
    await asyncio.wait_for(task, 10)
    return await shop.row(job)


async def ending(shop: Shop) -> str:
    """How the last call ended, as the upstream saw it."""

    async def look() -> str:
        return shop.upstream.calls[-1].finished

    return await shop.until(look)


@pytest.mark.parametrize("first", [[Say("One two")], []], ids=["in mid-answer", "before a word"])
async def test_a_cancelled_job_ends_at_once_and_its_answer_is_read_to_the_end(
    shop: Shop, first: list[Step]
) -> None:
    """The customer pays for what was delivered; the attempt tells what the upstream counted."""
    go = threading.Event()
    job = await cancelled(shop, *first, WaitFor(go), Say("three four"), Usage(3, 700))
    assert (job.status, shop.upstream.calls[-1].finished) == ("cancelled", "")
    go.set()

    async def counted() -> bool:
        [tried] = await shop.tries(job)
        return (tried.usage, tried.cost) == (COUNTED, 3 * 1000 + 700 * 2000)

    await shop.until(counted)
    assert await ending(shop) == "done"
    assert await shop.row(job) == job
    assert job.usage is not None
    assert job.usage["completion_tokens"] < 10
    assert job.cost == Prices.kept(SNAPSHOT).cost(job.usage)
    message = (await shop.response(job))["choices"][0]["message"] if first else {"content": ""}
    assert "three" not in (message["content"] or "")


@pytest.mark.parametrize("first", ["settled", "counted"])
def test_what_was_counted_stands_whichever_came_first(sessions: Sessions, first: str) -> None:
    """The database may have been away when the attempt ended, and long enough for the drain."""
    with sessions() as session:
        lease = claimed(session).lease
        if first == "counted":
            remains.counted(session, lease, Said(usage=COUNTED, model="test"))
        leases.settle(session, lease, Cancelled(SAID))
        if first == "settled":
            remains.counted(session, lease, Said(usage=COUNTED, model="test"))

        [tried] = jobs.attempts(session, lease.job_id)
        assert (tried.outcome, tried.usage) == ("cancelled", COUNTED)
        assert session.get_one(Job, lease.job_id).usage == SAID.usage


async def test_an_answer_that_breaks_off_leaves_the_estimate(shop: Shop) -> None:
    """Nobody counted, so what we reckoned stands."""
    go = threading.Event()
    job = await cancelled(shop, Say("One two"), WaitFor(go), End())
    go.set()

    assert await ending(shop) == "end"
    [tried] = await shop.tries(job)
    assert tried.usage == job.usage


async def test_past_the_most_that_are_read_on_calls_are_closed(shop: Shop) -> None:
    """A wave of cancels does not turn into a wave of useless reading."""
    shop.bench.remainders = Remainders(shop.bench.tx, within=LONG, most=1)
    await cancelled(shop, Say("One two"), Stall())
    job = await cancelled(shop, Say("One two"), Stall())

    assert job.status == "cancelled"
    assert await ending(shop) == "closed_by_client"
    assert shop.upstream.calls[0].finished == ""
    await shop.bench.remainders.stop()


async def test_nothing_is_read_on_for_longer_than_an_attempt_may_take(opened: Opened) -> None:
    """The limit counts from the attempt's beginning."""
    async with opened(attempt_timeout=timedelta(seconds=2)) as shop:
        job = await cancelled(shop, Say("One two"), Stall())

        assert job.status == "cancelled"
        assert await ending(shop) == "closed_by_client"


async def test_a_worker_that_stops_closes_what_it_reads_on(opened: Opened) -> None:
    """It does not wait for answers that nobody waits for, and leaves nothing behind."""
    before = asyncio.all_tasks()
    async with opened() as shop:
        await cancelled(shop, Say("One two"), Stall())
        await asyncio.wait_for(shop.bench.drain(), 10)
        assert shop.upstream.calls[-1].finished == ""

    assert asyncio.all_tasks() <= before
    assert await ending(shop) == "closed_by_client"


async def test_only_a_cancel_is_drained(shop: Shop) -> None:
    """A job that is handed back is asked again elsewhere: nobody should pay for both."""
    task = await shop.begin(await shop.submit(Say("One two"), Stall(), background=True))
    await shop.bench.drain()
    await task

    assert await ending(shop) == "closed_by_client"
