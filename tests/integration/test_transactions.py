"""The seam between async code and the database: group commit, its failures, and reads."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import event, make_url, text
from sqlmodel import Session

from shared import db, jobs
from shared.db import DatabaseUnavailable, Transactions
from shared.errors import NotFound
from shared.tables import Job
from tests.factories import Sessions, submission, submitted

R = TypeVar("R")
WITHIN = 10.0
"""Seconds a test waits at most."""


@pytest.fixture
async def tx(sessions: Sessions) -> AsyncIterator[Transactions]:
    """Transactions on the same database, from an event loop."""
    opened = Transactions(db.connect(sessions.url))
    yield opened
    await asyncio.to_thread(opened.close)


class Gate:
    """A transaction that stays open until it is let go, so that calls gather behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, session: Session) -> None:
        """Hold the writer."""
        session.connection()
        self.entered.set()
        assert self.open.wait(WITHIN)

    async def held(self, tx: Transactions) -> "asyncio.Task[None]":
        """Hold the writer of these transactions from now on."""
        task = asyncio.create_task(tx(self))
        await asyncio.to_thread(self.entered.wait, WITHIN)
        return task


async def together(tx: Transactions, *works: Callable[[Session], R]) -> list[R | BaseException]:
    """The results of calls that share one transaction."""
    gate = Gate()
    held = await gate.held(tx)
    calls = [asyncio.create_task(tx(work)) for work in works]
    await asyncio.sleep(0)
    gate.open.set()
    await held
    return await asyncio.gather(*calls, return_exceptions=True)


def submit_bad(session: Session) -> None:
    """Leave a job, then fail."""
    submitted(session, job_id="b" * 26)
    raise NotFound("No.")


def break_a_constraint(session: Session) -> None:
    """Fail in the database, not in Python."""
    session.connection().execute(text("UPDATE jobs SET status = 'in_progress'"))


def divide_by_zero(_: Session) -> None:
    """A bug of our own."""
    raise ZeroDivisionError


def nothing(session: Session, items: list[int]) -> list[int]:
    """Look at the database, and make nothing of it."""
    session.connection()
    return items


def ids_in(session: Session) -> list[str]:
    """The ids of all jobs."""
    return [row[0] for row in session.connection().execute(text("SELECT id FROM jobs ORDER BY id"))]


async def test_a_result_is_there_for_everybody(sessions: Sessions, tx: Transactions) -> None:
    """What was awaited has been committed: another connection sees it at once."""
    for _ in range(20):
        job = await tx(submitted)

        with sessions() as session:
            assert session.get(Job, job.id) is not None


async def test_one_call_that_fails_leaves_its_neighbours_alone(
    sessions: Sessions, tx: Transactions
) -> None:
    """It raises its own error and leaves nothing behind; the others have committed."""
    made, bad, also, broken, buggy, last = await together(
        tx, submitted, submit_bad, submitted, break_a_constraint, divide_by_zero, submitted
    )

    assert isinstance(bad, NotFound)
    assert isinstance(broken, Exception)
    assert not isinstance(broken, DatabaseUnavailable)
    assert isinstance(buggy, ZeroDivisionError)
    assert all(isinstance(job, Job) for job in (made, also, last))
    with sessions() as session:
        assert ids_in(session) == sorted(job.id for job in (made, also, last))  # type: ignore[union-attr]


async def test_a_call_that_fails_alone_leaves_nothing(sessions: Sessions, tx: Transactions) -> None:
    """Without neighbours there is no savepoint, but the same promise."""
    with pytest.raises(NotFound):
        await tx(submit_bad)

    with sessions() as session:
        assert ids_in(session) == []
    assert await tx(submitted)


async def test_calls_that_come_together_share_a_commit(
    sessions: Sessions, tx: Transactions
) -> None:
    """A hundred submissions cost far fewer commits than a hundred."""
    commits = []
    event.listen(tx._engine, "commit", lambda _: commits.append(1))

    made = await asyncio.gather(*(tx(submitted) for _ in range(100)))

    with sessions() as session:
        assert len(ids_in(session)) == len({job.id for job in made}) == 100
    assert len(commits) <= 20


async def in_a_crowd(tx: Transactions, monkeypatch: pytest.MonkeyPatch) -> "asyncio.Task[Job]":
    """A call that came after many, and waits for more as long as it may."""
    monkeypatch.setattr(db, "MOMENT", 60.0)
    monkeypatch.setattr(db, "LATELY", 60.0)
    await together(tx, *[submitted] * db.CROWD)
    call = asyncio.create_task(tx(submitted))
    await asyncio.wait({call}, timeout=0.1)
    assert not call.done()
    return call


async def test_after_a_crowd_a_call_waits_for_company(
    tx: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shares its commit with those of the next moment, and waits no longer for enough."""
    commits = []
    first = await in_a_crowd(tx, monkeypatch)
    event.listen(tx._engine, "commit", lambda _: commits.append(1))

    await asyncio.gather(first, *(tx(submitted) for _ in range(db.ENOUGH - 1)))

    assert len(commits) == 1


async def test_nobody_waits_for_company_in_the_end(
    tx: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way when transactions are closed is finished at once."""
    last = await in_a_crowd(tx, monkeypatch)

    await asyncio.to_thread(tx.close)

    assert await last


@pytest.mark.parametrize("alone", [False, True], ids=["among others", "alone"])
async def test_calls_of_one_kind_are_done_at_once(tx: Transactions, alone: bool) -> None:
    """If they are of one account; one that fails is tried alone, and so are its neighbours."""
    asked: list[list[int]] = []

    def halves(session: Session, numbers: list[int]) -> list[float]:
        asked.append(numbers)
        submitted(session)
        return [1 / number for number in numbers]

    others = [] if alone else [("a", 1), ("b", 2), ("a", 4)]
    commits = list[int]()
    gate = Gate()
    held = await gate.held(tx)
    event.listen(tx._engine, "commit", lambda _: commits.append(1))
    calls = [
        asyncio.create_task(tx.together(account, halves, number))
        for account, number in [*others, ("c", 0), ("c", 5), ("c", 8)]
    ]
    await asyncio.sleep(0)
    gate.open.set()
    await held
    *found, broken, fifth, eighth = await asyncio.gather(*calls, return_exceptions=True)

    assert [*found, fifth, eighth] == [1 / number for _, number in others] + [0.2, 0.125]
    assert isinstance(broken, ZeroDivisionError)
    assert asked == ([] if alone else [[1, 4], [2]]) + [[0, 5, 8], [0], [5], [8]]
    assert len(commits) == 2  # the gate's, and theirs
    assert len(await tx.read(ids_in)) == len(others[1:]) + 2


async def test_a_call_that_moves_many_accounts_shares_its_commit_with_nobody(
    tx: Transactions,
) -> None:
    """Those that came before it commit before it, those that came later after it."""
    told: list[str] = []
    event.listen(tx._engine, "commit", lambda _: told.append("commit"))
    gate = Gate()
    held = await gate.held(tx)

    def tell(name: str) -> Callable[[Session], None]:
        return lambda _: told.append(name)

    asked = [tx(tell("a")), tx(tell("b")), tx.alone(tell("many")), tx(tell("c")), tx(tell("d"))]
    calls = [asyncio.create_task(call) for call in asked]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(held, *calls)

    assert told == ["commit", "a", "b", "commit", "many", "commit", "c", "d", "commit"]


async def test_rows_can_be_read_after_the_commit(tx: Transactions) -> None:
    """An answer is made of them when their session is long closed."""
    first, second = await together(tx, submitted, lambda session: submitted(session, model="x"))
    found = await tx.read(lambda session: jobs.find(session, first.account_id, first.id))  # type: ignore[union-attr]

    for job in (first, second, found):
        assert isinstance(job, Job)
        assert (job.status, job.attempt, job.job_metadata) == ("queued", 0, None)


async def test_reads_do_not_wait_behind_a_writer(tx: Transactions) -> None:
    """They see the last commit meanwhile."""
    job = await tx(submitted)
    gate = Gate()
    held = await gate.held(tx)

    async with asyncio.timeout(WITHIN / 2):
        assert await tx.read(ids_in) == [job.id]
    assert not held.done()

    gate.open.set()
    await held


async def test_a_read_keeps_nothing_that_it_wrote(sessions: Sessions, tx: Transactions) -> None:
    """There is no commit on that side."""
    await tx.read(submitted)

    with sessions() as session:
        assert ids_in(session) == []


async def test_looks_that_wait_for_another_are_one(tx: Transactions) -> None:
    """Of each kind, and without those that nobody waits for any more. Nothing is kept."""
    gate, asked = Gate(), list[list[int]]()

    def waits(session: Session, gates: list[Gate]) -> list[Gate]:
        for each in gates:
            each(session)
        return gates

    def halves(session: Session, numbers: list[int]) -> list[float]:
        asked.append(numbers)
        submitted(session)
        return [1 / number for number in numbers]

    def doubles(_: Session, numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    held = asyncio.create_task(tx.look(waits, gate))
    await asyncio.to_thread(gate.entered.wait, WITHIN)
    calls = [asyncio.create_task(tx.look(halves, number)) for number in (1, 2)]
    double = asyncio.create_task(tx.look(doubles, 2))
    gone = asyncio.create_task(tx.look(halves, 3))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await held

    assert await asyncio.gather(*calls, double) == [1, 0.5, 4]
    assert asked == [[1, 2]]
    assert await tx.read(ids_in) == []


async def test_a_long_look_delays_only_its_like(tx: Transactions) -> None:
    """Others are answered meanwhile; those that wait for it are one."""
    gate, asked = Gate(), list[list[int]]()

    def slow(session: Session, numbers: list[int]) -> list[int]:
        asked.append(numbers)
        if 1 in numbers:
            gate(session)
        return numbers

    held = asyncio.create_task(tx.look(slow, 1, long=True))
    await asyncio.to_thread(gate.entered.wait, WITHIN)
    calls = [asyncio.create_task(tx.look(slow, number, long=True)) for number in (2, 3)]
    await asyncio.sleep(0)

    assert await tx.look(lambda _, items: items, 0) == 0
    assert not held.done()
    gate.open.set()
    assert await asyncio.gather(held, *calls) == [1, 2, 3]
    assert asked == [[1], [2, 3]]


async def test_a_look_that_fails_is_tried_for_each_alone(tx: Transactions) -> None:
    """Its neighbours have their answers."""
    gate = Gate()

    def halves(session: Session, numbers: list[int]) -> list[float]:
        if 1 in numbers:
            gate(session)
        return [1 / number for number in numbers]

    held = asyncio.create_task(tx.look(halves, 1))
    await asyncio.to_thread(gate.entered.wait, WITHIN)
    calls = [asyncio.create_task(tx.look(halves, number)) for number in (2, 0, 4)]
    await asyncio.sleep(0)
    gate.open.set()

    half, broken, quarter = await asyncio.gather(*calls, return_exceptions=True)
    assert (await held, half, quarter) == (1, 0.5, 0.25)
    assert isinstance(broken, ZeroDivisionError)


async def test_a_caller_that_gave_up_disturbs_nobody(sessions: Sessions, tx: Transactions) -> None:
    """Its call may have taken place, and the others get their answers."""
    gate = Gate()
    held = await gate.held(tx)
    gone, stayed = asyncio.create_task(tx(submitted)), asyncio.create_task(tx(submitted))
    await asyncio.sleep(0)
    gone.cancel()
    gate.open.set()

    assert await stayed
    await held
    assert gone.cancelled()
    with sessions() as session:
        assert len(ids_in(session)) == 2


async def test_closed_transactions_refuse_more(sessions: Sessions) -> None:
    """What was under way is finished first."""
    tx = Transactions(db.connect(sessions.url))
    gate = Gate()
    held = await gate.held(tx)
    last = asyncio.create_task(tx(submitted))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(tx.close))
    gate.open.set()
    await asyncio.gather(held, last, closing)

    for refused in (tx(submitted), tx.read(ids_in), tx.look(nothing, 0)):
        with pytest.raises(DatabaseUnavailable):
            await refused
    with sessions() as session:
        assert ids_in(session) == [last.result().id]


async def test_a_database_that_is_not_there_is_unavailable(sessions: Sessions) -> None:
    """Reads and writes say so, alone and together; they do not hang, and they do not crash."""
    url = make_url(sessions.url)
    away = (
        url.set(database="/nowhere/at/all.db")
        if sessions.is_sqlite
        else url.set(query={}, host="127.0.0.1", port=1)
    )
    tx = Transactions(db.connect(away.render_as_string(hide_password=False)))
    try:
        calls: list[Any] = [tx(submitted), tx(submitted), tx(submitted), tx.read(ids_in)]
        calls += [tx.look(nothing, number) for number in range(3)]
        async with asyncio.timeout(WITHIN):
            found = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        await asyncio.to_thread(tx.close)

    assert all(isinstance(error, DatabaseUnavailable) for error in found), found


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_is_cut_is_unavailable_then_replaced(
    sessions: Sessions, tx: Transactions
) -> None:
    """In the middle of a group: nobody is told that it was kept unless it was."""

    def cut(session: Session) -> None:
        pid = session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one()
        with sessions() as other:
            other.connection().execute(text(f"SELECT pg_terminate_backend({pid})"))
        session.connection().execute(text("SELECT 1"))

    found = await together(tx, submitted, cut, submitted)

    assert all(isinstance(error, DatabaseUnavailable) for error in found[1:]), found
    # The first is of a group of its own where it takes a second.
    kept = [job.id for job in found if isinstance(job, Job)]
    with pytest.raises(DatabaseUnavailable):
        await tx(cut)
    with pytest.raises(DatabaseUnavailable):
        await tx.read(cut)
    with sessions() as session:
        assert ids_in(session) == kept
    job = await tx(submitted)
    assert await tx.read(ids_in) == [*kept, job.id]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_is_cut_while_nobody_uses_it_is_replaced_unseen(
    sessions: Sessions, tx: Transactions
) -> None:
    """Though it was used a moment ago, and is not asked each time."""

    def number(session: Session) -> int:
        return int(session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one())

    before = await tx(number)
    assert await tx(number) == before
    with sessions() as other:
        gone = text(f"SELECT pg_terminate_backend({before}, 5000)")
        assert other.connection().execute(gone).scalar_one()

    assert await tx(number) != before


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_deadlock_between_two_groups_is_solved(
    sessions: Sessions, tx: Transactions
) -> None:
    """The group that the database gave up is repeated one by one: every call succeeds."""
    with sessions() as session:
        first, second = (submitted(session, model="0").id for _ in range(2))
    both_hold_a_row = threading.Barrier(2)
    runs = []

    def count_up(job_id: str, *meetings: threading.Barrier) -> Callable[[Session], None]:
        ahead = list(meetings)

        def work(session: Session) -> None:
            runs.append(job_id)
            session.connection().execute(
                text("UPDATE jobs SET characters = characters + 1 WHERE id = :id"), {"id": job_id}
            )
            if ahead:
                ahead.pop().wait(WITHIN)

        return work

    other = Transactions(db.connect(sessions.url))
    try:
        found = await asyncio.gather(
            together(tx, count_up(first, both_hold_a_row), count_up(second)),
            together(other, count_up(second, both_hold_a_row), count_up(first)),
        )
    finally:
        await asyncio.to_thread(other.close)

    assert [result for group in found for result in group] == [None] * 4
    assert len(runs) == 6, "two calls of the group that was given up run again"
    with sessions() as session:
        assert [session.get_one(Job, job_id).characters for job_id in (first, second)] == [2, 2]


async def test_a_thousand_jobs_are_one_call(tx: Transactions) -> None:
    """All of an array's jobs come back in its order."""
    new = await tx(lambda session: [submission(session, max_attempts=1 + n) for n in range(1_000)])

    made = await tx(jobs.submit_all, new)

    assert [job.id for job in made] == [one.job_id for one in new]
    assert len(await tx.read(ids_in)) == 1_000
