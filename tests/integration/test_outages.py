"""A worker whose database goes away: what it does is neither lost nor done twice."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import Session, col, select

from shared import leases, losses, streams
from shared.tables import Job, Worker
from tests.factories import Sessions
from tests.fakes.upstream import Say, ScriptedUpstream, Stall, WaitFor
from tests.postgres import Postgres
from tests.proxy import Link, through
from tests.shop import Shop, open_shop
from tests.valkey import Valkey
from workers import attempts
from workers.heartbeat import Heartbeat


@pytest.fixture
def url(postgres_server: Postgres) -> Iterator[str]:
    """The database itself."""
    with postgres_server.fresh() as fresh:
        yield fresh


@pytest.fixture
def link(url: str) -> Iterator[Link]:
    """The worker's way to it."""
    with Link.to(url) as opened:
        yield opened


@pytest.fixture
async def shop(
    tmp_path: Path, url: str, link: Link, redis_server: Valkey, upstream: ScriptedUpstream
) -> AsyncIterator[Shop]:
    """A bench at the end of that link, which trusts its lease for two seconds."""
    async with open_shop(
        tmp_path,
        through(url, link),
        redis_server.url,
        upstream,
        lease_ttl=timedelta(seconds=3),
        attempt_timeout=timedelta(seconds=60),
    ) as opened:
        yield opened


async def fenced(shop: Shop, worker_id: str | None) -> None:
    """Wait until the worker gives up this lease."""

    async def gone() -> bool:
        return shop.bench.heartbeat.worker_id != worker_id

    await shop.until(gone)


async def outcomes(shop: Shop, job: Job) -> list[str | None]:
    """How its attempts ended."""
    return [each.outcome for each in await shop.tries(job)]


async def test_a_claim_whose_answer_is_lost_goes_on(shop: Shop, link: Link) -> None:
    """Asked again, the database says that the job is ours already."""
    job = await shop.submit(Say("Hi"))
    link.lose_commits(1)
    await attempts.run(shop.bench, job.id)

    assert link.lost == 1
    assert await outcomes(shop, job) == ["completed"]
    assert len(shop.upstream.calls) == 1


async def test_a_settle_whose_answer_is_lost_counts_once(shop: Shop, link: Link) -> None:
    """Asked again, the database says that it is written down already."""
    go = threading.Event()
    job = await shop.submit(Say("One two"), WaitFor(go))
    task = await shop.begin(job)
    link.lose_commits(1)
    go.set()
    await task

    assert link.lost == 1
    assert await outcomes(shop, job) == ["completed"]


async def test_a_short_outage_costs_nothing(shop: Shop, link: Link) -> None:
    """The model speaks on, and its end waits."""
    go = threading.Event()
    job = await shop.submit(Say("One two"), WaitFor(go), Say(" three"))
    task = await shop.begin(job)
    worker_id = shop.bench.heartbeat.worker_id
    link.cut()
    go.set()
    listening = shop.bench.hands.running[job.id].task
    assert listening is not None
    await asyncio.wait({listening})
    link.mend()
    await task

    assert shop.bench.heartbeat.worker_id == worker_id
    assert await outcomes(shop, job) == ["completed"]


async def test_what_is_finished_outlasts_the_lease(shop: Shop, link: Link) -> None:
    """What was cut short is handed back, at once, by the worker itself: no attempt is lost."""
    go = threading.Event()
    whole = await shop.submit(Say("One two"), WaitFor(go), Say(" three"))
    ending = await shop.begin(whole)
    cut = await shop.submit(Say("Four"), Stall(), background=True)
    stalled = await shop.begin(cut)
    former = shop.bench.heartbeat.worker_id
    link.cut()
    go.set()
    await fenced(shop, former)
    await stalled
    done, _ = await asyncio.wait({ending}, timeout=3)
    assert not done
    link.mend()
    await asyncio.wait_for(ending, 20)

    async def back() -> bool:
        return (await shop.row(cut)).status == "queued"

    await shop.until(back)
    assert await outcomes(shop, whole) == ["completed"]
    assert await outcomes(shop, cut) == ["handed_back"]
    assert (await shop.row(cut)).losses == 0
    assert await shop.bench.tx.read(alive) == [shop.bench.heartbeat.worker_id]


async def test_without_a_lease_it_listens_as_nobody_and_waits_for_one(shop: Shop) -> None:
    """Also when it was Redis that went first: nothing breaks, and the next lease is heard."""
    bench = shop.bench
    unleased = Heartbeat(bench.settings, bench.tx, bench.redis, models=[], hands=bench.hands)
    listening = asyncio.create_task(unleased._hear())
    await asyncio.wait({listening}, timeout=0.2)
    unleased.worker_id = "wkr_next"

    async def heard() -> bool:
        return await bench.redis.publish(streams.control_channel("wkr_next"), "any") > 0

    await shop.until(heard)
    listening.cancel()


def alive(session: Session) -> list[str]:
    """The leases that are presumed to be held."""
    return list(session.exec(select(Worker.id).where(col(Worker.alive))))


async def test_what_was_given_away_meanwhile_is_late(shop: Shop, link: Link, url: str) -> None:
    """Only this worker was cut off: the finished attempt is refused, and noted as late."""
    go = threading.Event()
    job = await shop.submit(Say("One two"), WaitFor(go), Say(" three"))
    ending = await shop.begin(job)
    former = shop.bench.heartbeat.worker_id
    assert former is not None
    link.cut()
    go.set()
    await fenced(shop, former)
    sessions = Sessions(url)
    with sessions() as session:
        leases.retire(session, former)
        losses.rescue(session, 10)
    sessions.close()
    link.mend()
    await asyncio.wait_for(ending, 20)

    assert await outcomes(shop, job) == ["late"]
    row = await shop.row(job)
    assert (row.status, row.losses) == ("queued", 1)


async def test_a_worker_that_ends_hands_back_what_is_still_in_its_name(
    tmp_path: Path, database_url: str, redis_server: Valkey, upstream: ScriptedUpstream
) -> None:
    """Whatever it had claimed without knowing: a stop in good order costs no attempt."""
    async with open_shop(tmp_path, database_url, redis_server.url, upstream) as shop:
        job = await shop.submit()
        assert shop.bench.heartbeat.worker_id is not None
        await shop.bench.tx(leases.claim, job.id, shop.bench.heartbeat.worker_id)

    sessions = Sessions(database_url)
    with sessions() as session:
        row = session.get_one(Job, job.id)
        assert (row.status, row.attempt, row.forgiven, row.losses) == ("queued", 1, 1, 0)
        assert alive(session) == []
    sessions.close()
