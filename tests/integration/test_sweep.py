"""The sweep behind a backlog of 100,000 jobs: what a turn costs, and that no hint stays lost."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text
from sqlmodel import Session

from shared import clock, connections, db, deadlines, feeding, hints, lanes, leases, queue
from shared.lifecycle import Lane
from shared.tables import Job
from tests.factories import HOUR, Sessions, abandon, no_models, submitted, waiting
from tests.valkey import Valkey
from workers.control import AT_ONCE, Control
from workers.settings import WorkerSettings

BACKLOG = 100_000
WINDOW = 2 * AT_ONCE
WIDER = WINDOW + WINDOW // 10


def multiply(session: Session, job: Job, times: int) -> None:
    """So many more jobs like this one, in one statement."""
    names = [column.name for column in Job.__table__.columns]  # type: ignore[attr-defined]
    values = [f"id || CAST({BACKLOG} + n AS TEXT)" if name == "id" else name for name in names]
    numbers = f"numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {times})"
    session.connection().execute(
        text(
            f"WITH RECURSIVE {numbers} INSERT INTO jobs ({', '.join(names)})"
            f" SELECT {', '.join(values)} FROM jobs, numbers WHERE id = :id"
        ),
        {"id": job.id},
    )


def backlog(sessions: Sessions, times: int) -> None:
    """So many jobs that may start, as many planned for later, as many that expire some time."""
    later = clock.now() + HOUR
    with sessions() as session:
        multiply(session, submitted(session, hinted=False), times)
        multiply(session, submitted(session, hinted=False, run_at=later), times)
        multiply(session, submitted(session, hinted=False, expires_at=later), times)
    with sessions() as session:
        session.connection().execute(text("ANALYZE"))


def effort(session: Session) -> int:
    """What one turn costs the database: rows PostgreSQL reads, steps SQLite's machine takes."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 100

    connection = session.connection()
    if connection.dialect.name == "sqlite":
        connection.connection.set_progress_handler(count, 100)
    lane = Lane.INTERACTIVE.value
    found = waiting(session, lane, AT_ONCE)
    assert feeding.anybody(session)
    assert feeding.due(session, AT_ONCE) == []
    assert feeding.flight(session).accounts.total() == 0
    assert hints.mark(session, found, after_ms=HOUR) == found != []
    assert hints.out(session, lane, WINDOW) == AT_ONCE
    assert hints.stale(session, lane, after_ms=HOUR, limit=WINDOW) == []
    assert lanes.running(session, lane) == 0
    for step in (deadlines.expire, deadlines.overdue, abandon):
        assert step(session, AT_ONCE) == []
    if connection.dialect.name == "sqlite":
        connection.connection.set_progress_handler(None, 0)
        return steps
    read = text(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'jobs'"
    )
    return int(connection.execute(read).scalar_one())


def test_a_turn_costs_no_more_behind_a_long_backlog(sessions: Sessions) -> None:
    """Each of its statements reads what it needs in the order of an index, and no further."""
    costs = []
    for times in (2 * AT_ONCE, BACKLOG // 3):
        backlog(sessions, times)
        with sessions() as session:
            costs.append(effort(session))
            session.rollback()

    short, long = costs
    assert long < 1.5 * short


@dataclass
class Desk:
    """A database with a backlog, a broker, and one control loop."""

    settings: WorkerSettings
    tx: db.Transactions
    redis: Redis
    deepest: int = 0
    """The longest a queue has been seen."""
    started: list[Control] = field(default_factory=list)

    def start(self) -> None:
        """Begin to turn."""
        control = Control(self.settings, self.tx, self.redis, no_models)
        control.start()
        self.started.append(control)

    async def messages(self, lane: Lane = Lane.INTERACTIVE) -> list[bytes]:
        """What is in a lane's queue, the newest first."""
        found: Any = await self.redis.lrange(queue.queue_key(lane), 0, -1)
        self.deepest = max(self.deepest, len(found))
        return list(found)

    async def hints(self, lane: Lane = Lane.INTERACTIVE) -> Counter[str]:
        """How often each job's hint is in the queue."""
        return Counter(job for message in await self.messages(lane) for job in named(message))


def named(message: bytes) -> list[str]:
    """The jobs whose hint this is."""
    if not message.startswith(b"{"):
        return ["none"]
    return re.findall(r"'(\w+)'", json.loads(message)["headers"]["argsrepr"])


@pytest.fixture
async def desk(sessions: Sessions, redis_server: Valkey) -> AsyncIterator[Desk]:
    """A hint is old after two seconds."""
    settings = WorkerSettings(
        database_url=SecretStr(sessions.url),
        redis_url=SecretStr(redis_server.url),
        hint_ttl=timedelta(seconds=2),
        hint_window=WINDOW,
    )
    tx = db.Transactions(db.connect(sessions.url))
    redis = connections.open_redis(redis_server.url)
    opened = Desk(settings, tx, redis)
    try:
        yield opened
    finally:
        for control in opened.started:
            await control.stop()
        tx.close()
        await redis.aclose()


async def test_no_lost_hint_starves_behind_a_backlog(sessions: Sessions, desk: Desk) -> None:
    """Every hint is old, some are there twice, which hides the lost ones from whoever counts."""
    with sessions() as session:
        multiply(session, submitted(session, hinted=False), BACKLOG)
    desk.start()
    async with asyncio.timeout(60):
        while (await desk.hints()).total() < WINDOW:
            await asyncio.sleep(0.05)
        key, messages = queue.queue_key(Lane.INTERACTIVE), await desk.messages()
        lost, twice = (messages[0], messages[WINDOW // 2], messages[-1]), messages[3:8]
        for message in lost:
            assert await cast(Any, desk.redis.lrem(key, 1, message)) == 1  # type: ignore[arg-type]
        await cast(Any, desk.redis.rpush(key, *twice, b"garbage"))
        while not (hints := await desk.hints()).keys() >= {job for (job,) in map(named, lost)}:
            await asyncio.sleep(0.05)

    # No other was sent again, and the backlog stays where it is.
    assert {job for job, times in hints.items() if times > 1} == {
        job for (job,) in map(named, twice)
    }
    assert desk.deepest <= WIDER


async def test_an_emptied_broker_is_filled_again(sessions: Sessions, desk: Desk) -> None:
    """With those who had their place before, each once; the window holds all the while."""
    with sessions() as session:
        multiply(session, submitted(session, hinted=False), 3 * WINDOW)
    desk.start()
    async with asyncio.timeout(60):
        while (before := await desk.hints()).total() < WINDOW:
            await asyncio.sleep(0.05)
        await desk.redis.flushall()
        while (after := await desk.hints()).total() < WINDOW:
            await asyncio.sleep(0.05)

    assert after == before
    assert set(after.values()) == {1}
    assert desk.deepest == WINDOW


async def test_lines_share_hints(sessions: Sessions, desk: Desk) -> None:
    """Sixteen at most, and fewer when there are workers to share them."""
    with sessions() as session:
        for _ in range(2):
            leases.register(session, pid=1, slots=45, models=["test"])
        multiply(session, submitted(session, hinted=False, lane=Lane.BATCH), 39)
    desk.start()
    async with asyncio.timeout(30):
        while (await desk.hints(Lane.BATCH)).total() < 40:
            await asyncio.sleep(0.05)

    sizes = [len(named(message)) for message in await desk.messages(Lane.BATCH)]
    assert sizes == [10] * 4


async def test_lost_batch_hints_are_sent_again(sessions: Sessions, desk: Desk) -> None:
    """Also when they have taken all the room there is for their lane."""
    with sessions() as session:
        leases.register(session, pid=1, slots=9, models=["test"])
        multiply(session, submitted(session, hinted=False, lane=Lane.BATCH), 20)
    desk.start()
    async with asyncio.timeout(30):
        while (before := await desk.hints(Lane.BATCH)).total() < 6:
            await asyncio.sleep(0.05)
        await desk.redis.flushall()
        while (after := await desk.hints(Lane.BATCH)).total() < 6:
            await asyncio.sleep(0.05)

    assert after == before
