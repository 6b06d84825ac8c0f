"""A batch's input on its way in, when the process that takes it stops in the middle."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlmodel import Session, select

from api import uploads
from api.callers import Caller
from api.front import Front
from api.middleware import Metrics
from api.settings import ApiSettings
from shared import connections, db, keys
from shared.tables import File
from tests import sqlite
from tests.batches import CATALOG, line


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """What an api process works with, without Redis."""
    settings = ApiSettings(home=tmp_path, database_url=SecretStr(sqlite.fresh(tmp_path)))
    tx, redis = db.Transactions(db.connect(settings.database)), connections.open_redis("redis://")
    front = Front(settings, tx=tx, redis=redis, catalog=CATALOG, metrics=Metrics())
    yield front
    await front.hints.close(timedelta())
    tx.close()
    await redis.aclose()


@pytest.mark.parametrize("completed, left", [(False, 0), (True, 1)])
async def test_what_a_batch_may_read_already_stays(
    front: Front, tmp_path: Path, completed: bool, left: int
) -> None:
    """Whoever is cancelled while it commits the batch cannot know whether it is there."""
    key, _ = await front.tx(keys.create, account="ours")
    there = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield line(1)

    async def take() -> None:
        async with uploads.begun(
            front, Caller(key.account_id, key.id, frozenset()), "in.jsonl"
        ) as coming:
            await coming.write(pieces())
            if completed:
                await coming.complete(timedelta(hours=1))
            there.set()
            await asyncio.Event().wait()

    taking = asyncio.create_task(take())
    await there.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking

    def rows(session: Session) -> int:
        return len(session.exec(select(File)).all())

    assert await front.tx.read(rows) == left
    assert len(list((tmp_path / "files").iterdir())) == left
