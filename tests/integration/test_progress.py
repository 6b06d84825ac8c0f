"""Who follows a batch hears of what changes; those in one process share the looking."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlmodel import delete

from api import progress
from api.progress import Watches
from shared import batches, db
from shared.errors import NotFound
from shared.lifecycle import JobStatus
from shared.tables import Batch
from tests import batches as made
from tests.factories import Sessions

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


@pytest.fixture
async def tx(sessions: Sessions) -> AsyncIterator[db.Transactions]:
    """The database, as an api process has it."""
    opened = db.Transactions(db.connect(sessions.url))
    yield opened
    opened.close()


@pytest.fixture
def batch(sessions: Sessions) -> Batch:
    """A batch whose lines wait."""
    with sessions() as session:
        return made.begun(session, 2)


async def test_readers_of_one_batch_share_the_looking(tx: db.Transactions, batch: Batch) -> None:
    """The first begins it, the last ends it."""
    watches = Watches(tx)
    async with watches.following(batch.account_id, batch.id) as one:
        async with watches.following(batch.account_id, batch.id) as other:
            assert one is other
        assert one.task is not None
        assert not one.task.done()
    assert one.task.done()
    async with watches.following(batch.account_id, batch.id) as later:
        assert later is not one


async def test_a_reader_hears_of_a_change_and_of_nothing_else(
    tx: db.Transactions, batch: Batch
) -> None:
    """A look that finds the same wakes nobody."""
    async with Watches(tx).following(batch.account_id, batch.id) as watch:
        before = watch.progress
        assert not watch.show(await tx.read(progress.look, batch.account_id, batch.id))
        assert watch.progress is before

        waiting = asyncio.ensure_future(watch.changed(30))
        await tx(batches.pause, batch.account_id, batch.id)
        await waiting
        assert watch.progress.reason == "paused"
        assert not watch.over


async def test_a_watch_is_over_when_the_batch_has_ended(
    sessions: Sessions, tx: db.Transactions, batch: Batch
) -> None:
    """Its last look has everything; who comes later needs none."""
    watches = Watches(tx)
    async with watches.following(batch.account_id, batch.id) as watch:
        with sessions() as session:
            for number in (1, 2):
                made.run(session, batch, number, JobStatus.COMPLETED)
            made.advance(session, session.get_one(Batch, batch.id))
        async with asyncio.timeout(30):
            while not watch.over:
                await watch.changed(30)
        seen = watch.progress
        assert (seen.batch.status, seen.counts.completed, seen.batch.results) == ("completed", 2, 2)
        async with watches.following(batch.account_id, batch.id) as later:
            assert (later.over, later.task) == (True, None)


async def test_a_watch_is_over_when_the_batch_is_gone(
    sessions: Sessions, tx: db.Transactions, batch: Batch
) -> None:
    """Retention may take it; nobody waits for what cannot come."""
    watches = Watches(tx)
    async with watches.following(batch.account_id, batch.id) as watch:
        with sessions() as session:
            session.execute(delete(Batch))
        async with asyncio.timeout(30):
            while not watch.over:
                await watch.changed(30)
    with pytest.raises(NotFound):
        async with watches.following(batch.account_id, batch.id):
            pass
