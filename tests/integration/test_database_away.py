"""A database that is cut off, hangs, is locked, full or broken: everybody is answered in time."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlmodel import Session
from structlog.testing import capture_logs

from shared import db
from shared.db import DatabaseUnavailable, Transactions
from shared.tables import Job
from tests.factories import Sessions, submitted
from tests.proxy import Link, through

WITHIN = 2.0
"""Seconds in which the transactions of this module answer."""
PATIENTLY = 4 * WITHIN
"""Seconds in which they have done so on a busy machine too."""

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def link(sessions: Sessions) -> Iterator[Link]:
    """The way to PostgreSQL."""
    with Link.to(sessions.url) as opened:
        yield opened


@pytest.fixture
async def tx(link: Link, sessions: Sessions) -> AsyncIterator[Transactions]:
    """Transactions over that link, which have spoken with the server."""
    opened = Transactions(db.connect(through(sessions.url, link)), within=WITHIN)
    await asyncio.gather(*(opened.read(ids_in) for _ in range(db.READERS)), opened(ids_in))
    yield opened
    await asyncio.to_thread(opened.close)


def ids_in(session: Session) -> list[str]:
    """The ids of all jobs."""
    return [row[0] for row in session.connection().execute(text("SELECT id FROM jobs ORDER BY id"))]


async def answers(*calls: Any) -> list[Any]:
    """Results and errors, all of which come in time."""
    async with asyncio.timeout(PATIENTLY):
        return await asyncio.gather(*calls, return_exceptions=True)


def refused(found: list[Any]) -> bool:
    """Whether all were, for certain."""
    return all(
        isinstance(error, DatabaseUnavailable) and not error.maybe_committed for error in found
    )


@on_postgresql
async def test_a_cut_connection_refuses_and_comes_back(
    sessions: Sessions, tx: Transactions, link: Link
) -> None:
    """A thousand calls fail together; the first one after the mend succeeds."""
    link.cut()

    writes = await answers(*(tx(submitted) for _ in range(1_000)))
    reads = await answers(*(tx.read(ids_in) for _ in range(100)))

    assert refused(writes)
    assert refused(reads)
    link.mend()
    job = await tx(submitted)
    assert await tx.read(ids_in) == [job.id]


@on_postgresql
async def test_a_hanging_connection_holds_nobody(
    sessions: Sessions, tx: Transactions, link: Link
) -> None:
    """Old connections and new ones; what was refused is never done, and every thread is free."""
    link.hang()

    for _ in range(2):
        found = await answers(
            *(tx(submitted) for _ in range(1_000)), *(tx.read(ids_in) for _ in range(100))
        )
        assert refused(found)

    link.mend()
    job, *reads = await answers(tx(submitted), *(tx.read(ids_in) for _ in range(db.READERS)))
    assert isinstance(job, Job)
    assert all(isinstance(found, list) for found in reads), reads
    assert await tx.read(ids_in) == [job.id]


@on_postgresql
async def test_a_statement_that_hangs_has_not_committed(
    sessions: Sessions, tx: Transactions, link: Link
) -> None:
    """It is given up before its caller is, who so learns that nothing was kept."""

    def hang(session: Session) -> None:
        submitted(session)
        link.hang()
        session.connection().execute(text("SELECT 1"))

    assert refused(await answers(tx(hang)))

    link.mend()
    assert await tx.read(ids_in) == []


@on_postgresql
async def test_a_commit_without_an_answer_may_have_taken_place(
    sessions: Sessions, tx: Transactions, link: Link
) -> None:
    """Its callers are told so; what comes next is not disturbed."""
    link.lose_commits(1)

    [error] = await answers(tx(submitted))

    assert isinstance(error, DatabaseUnavailable)
    assert error.maybe_committed
    assert link.lost == 1
    assert len(await tx.read(ids_in)) == 1
    assert await tx(submitted)


async def test_a_call_given_up_while_it_waited_is_never_made(sessions: Sessions) -> None:
    """The one under way may have taken place, those behind it have not."""
    go_on = threading.Event()
    under_way = threading.Event()

    def slow(session: Session) -> None:
        submitted(session)
        under_way.set()
        assert go_on.wait(PATIENTLY)

    tx = Transactions(db.connect(sessions.url), within=0.5)
    first = asyncio.create_task(tx(slow))
    await asyncio.to_thread(under_way.wait, PATIENTLY)

    late, *queued = await answers(first, *(tx(submitted) for _ in range(10)))
    go_on.set()
    await asyncio.to_thread(tx.close)

    assert isinstance(late, DatabaseUnavailable)
    assert late.maybe_committed
    assert refused(queued)
    with sessions() as session:
        assert len(ids_in(session)) == 1


@on_postgresql
async def test_closing_does_not_wait_for_a_database_that_hangs(
    sessions: Sessions, link: Link
) -> None:
    """Calls under way are given up in time."""
    tx = Transactions(db.connect(through(sessions.url, link)), within=WITHIN)
    await tx(submitted)
    link.hang()
    calls = [asyncio.create_task(call) for call in (tx(submitted), tx.read(ids_in))]
    await asyncio.sleep(0)

    async with asyncio.timeout(PATIENTLY):
        await asyncio.to_thread(tx.close)

    assert refused(await answers(*calls))


@on_sqlite
async def test_a_writer_waits_for_another_process_for_a_while(sessions: Sessions) -> None:
    """Then it is refused for certain; readers are not disturbed."""
    tx = Transactions(prepared(sessions.url, "PRAGMA busy_timeout = 200"), within=WITHIN)
    with closing(sqlite3.connect(path_of(sessions), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found = await answers(tx(submitted), tx(submitted))
        read = await tx.read(ids_in)
        other.execute("ROLLBACK")

    assert refused(found)
    assert read == []
    job = await tx(submitted)
    assert await tx.read(ids_in) == [job.id]
    await asyncio.to_thread(tx.close)


@on_sqlite
async def test_calls_that_wait_for_the_lock_go_through_together(sessions: Sessions) -> None:
    """Within the bound nothing is lost."""
    tx = Transactions(db.connect(sessions.url), within=PATIENTLY)
    with closing(sqlite3.connect(path_of(sessions), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        calls = [asyncio.create_task(tx(submitted)) for _ in range(100)]
        done, _ = await asyncio.wait(calls, timeout=0.2)
        assert not done
        other.execute("ROLLBACK")

    assert len({job.id for job in await asyncio.gather(*calls)}) == 100
    await asyncio.to_thread(tx.close)


def full(sessions: Sessions) -> Any:
    """An engine whose file may not grow."""
    return prepared(sessions.url, "PRAGMA max_page_count = 1")


def read_only(sessions: Sessions) -> Any:
    """An engine that may not write."""
    return db.connect(f"sqlite:///file:{path_of(sessions)}?mode=ro&uri=true")


def broken(sessions: Sessions) -> Any:
    """An engine on what is no database."""
    path = path_of(sessions).with_name("broken.db")
    path.write_bytes(b"no database" * 1_000)
    return db.connect(f"sqlite:///{path}")


@on_sqlite
@pytest.mark.parametrize(
    "engine, cause",
    [(full, "is full"), (read_only, "readonly"), (broken, "not a database")],
)
async def test_a_file_that_cannot_be_written_is_unavailable(
    sessions: Sessions, engine: Callable[[Sessions], Any], cause: str
) -> None:
    """The log says why, once."""
    tx = Transactions(engine(sessions), within=PATIENTLY)
    with capture_logs() as logs:
        found = [(await answers(tx(submitted, body=b"x" * 100_000)))[0] for _ in range(3)]
    await asyncio.to_thread(tx.close)

    assert refused(found), found
    [line] = logs
    assert line["event"] == "database_away"
    assert cause in line["error"]


@on_postgresql
async def test_the_log_tells_when_the_database_is_back(
    sessions: Sessions, tx: Transactions, link: Link
) -> None:
    """One line for its going, one for its return."""
    with capture_logs() as logs:
        link.cut()
        await answers(*(tx(submitted) for _ in range(10)))
        await answers(tx(submitted))
        link.mend()
        await tx(submitted)

    events = [line["event"] for line in logs]
    assert events[-1] == "database_back"
    assert len(events) == 1 + len({line.get("error") for line in logs[:-1]})


def prepared(url: str, pragma: str) -> Any:
    """An engine whose connections begin with this."""
    engine = db.connect(url)
    event.listen(engine, "connect", lambda connection, _: connection.execute(pragma))
    return engine


def path_of(sessions: Sessions) -> Path:
    """SQLite's file."""
    assert sessions.engine.url.database is not None
    return Path(sessions.engine.url.database)
