"""The leader moves batches on: from files to rows to files, whoever leads."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlmodel import col, select

from shared import batches, connections
from shared.audit import examine
from shared.db import Transactions
from shared.lifecycle import JobStatus
from shared.storage import Storage
from shared.tables import Batch, Job
from tests.batches import CATALOG, accepted, line, run
from tests.factories import Sessions
from tests.valkey import Valkey
from workers import batching
from workers.batching import Batching
from workers.settings import WorkerSettings

pytestmark = pytest.mark.anyio


class Office:
    """A database, a storage, and any number of leaders."""

    def __init__(self, sessions: Sessions, folder: Path, redis_url: str) -> None:
        self.sessions = sessions
        self.storage = Storage(str(folder))
        self.tx = Transactions(sessions.engine)
        self.redis = connections.open_redis(redis_url)
        self.leading = True

    def leader(self) -> Batching:
        """A process that leads, as far as it knows."""
        return Batching(
            WorkerSettings(),
            self.tx,
            self.redis,
            self.storage,
            catalog=lambda: CATALOG,
            leads=lambda: self.leading,
        )

    async def submit(self, lines: int) -> Batch:
        """A batch whose input is in the storage."""
        with self.sessions() as session:
            batch = accepted(session, lines)
        content = b"".join(line(number) for number in range(1, lines + 1))
        await self.storage.put(str(batch.input_file_id), content)
        return batch

    def now(self, batch: Batch) -> Batch:
        """The batch's row."""
        with self.sessions() as session:
            return session.get_one(Batch, batch.id)

    def lines(self, batch: Batch) -> list[tuple[int | None, str | None]]:
        """Its lines, in the order of the input."""
        with self.sessions() as session:
            rows = select(Job.line, Job.custom_id).where(col(Job.batch_id) == batch.id)
            return list(session.exec(rows.order_by(col(Job.line))).all())


@pytest.fixture
async def office(
    sessions: Sessions, tmp_path: Path, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Office]:
    """Twenty lines at once, so that fifty are several steps."""
    monkeypatch.setattr(batching, "LINES", 20)
    opened = Office(sessions, tmp_path / "files", redis_server.url)
    yield opened
    opened.tx.close()
    await opened.redis.aclose()


def expected(lines: int) -> list[tuple[int, str]]:
    """Every line once."""
    return [(number, f"line {number}") for number in range(1, lines + 1)]


async def test_every_line_becomes_one_job(office: Office) -> None:
    """Though two lead at once, one is replaced halfway, and the storage fails for a while."""
    batch = await office.submit(95)
    first, second = office.leader(), office.leader()
    await first.turn()
    assert office.now(batch).read_lines == 20
    await asyncio.gather(first.turn(), second.turn())
    assert office.now(batch).read_lines in (40, 60)
    await first.turn()
    await second.turn()

    away = office.storage
    office.storage = Storage("/dev/null")
    await office.leader().turn()
    office.storage = away
    third = office.leader()
    while any(await asyncio.gather(second.turn(), third.turn())):
        pass

    assert office.lines(batch) == expected(95)
    assert office.now(batch).status == "in_progress"
    assert examine(office.sessions.engine).flaws == []


async def test_a_short_batch_does_not_wait_for_a_long_one(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of each in turn, and when there are many, those of which least is read first."""
    monkeypatch.setattr(batching, "BATCHES", 1)
    long = await office.submit(100)
    leader = office.leader()
    await leader.turn()
    short = await office.submit(20)
    await leader.turn()

    assert office.lines(short) == expected(20)
    assert office.now(long).read_lines == 20


async def test_a_batch_without_its_input_has_failed(office: Office) -> None:
    """Its file was deleted before it was read; the others go on."""
    gone, there = await office.submit(3), await office.submit(3)
    await office.storage.delete(str(gone.input_file_id))
    leader = office.leader()
    while await leader.turn():
        pass

    failed = office.now(gone)
    assert (failed.status, failed.total, failed.read_lines) == ("failed", 0, 0)
    assert failed.errors is not None
    assert failed.errors[0]["code"] == "input_file_gone"
    assert office.lines(there) == expected(3)


async def test_one_that_does_not_lead_does_nothing(office: Office) -> None:
    """Until it does; then it sees a batch through to its end, and a cancel of another."""
    office.leading = False
    done, stopped = await office.submit(3), await office.submit(30)
    leader = office.leader()
    leader.start()
    try:
        await asyncio.sleep(batching.EVERY * 2)
        assert office.now(done).status == "validating"
        office.leading = True
        async with asyncio.timeout(30):
            while office.now(stopped).read_lines < 30 or office.now(done).read_lines < 3:
                await asyncio.sleep(0.05)
            with office.sessions() as session:
                for number in (1, 2, 3):
                    run(session, done, number, JobStatus.COMPLETED)
                batches.cancel(session, stopped.account_id, stopped.id)
            while None in (office.now(done).ended_at, office.now(stopped).ended_at):
                await asyncio.sleep(0.05)
    finally:
        await leader.stop()

    assert [office.now(batch).status for batch in (done, stopped)] == ["completed", "cancelled"]
    assert examine(office.sessions.engine).flaws == []
