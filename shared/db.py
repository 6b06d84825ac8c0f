"""The database: connect, migrate, and the one seam between async code and sync domain functions."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlmodel import Session

from shared.errors import Unavailable

P = ParamSpec("P")
R = TypeVar("R")

MIGRATIONS = Path(__file__).with_name("migrations")
GROUP_LIMIT = 256
"""Calls that share one transaction, at most."""
QUEUE_LIMIT = 20_000
"""Calls that may wait for the database before more are refused."""
READERS = 4
TRIES = 4
"""Times a call is tried that the database undid for another's sake."""
_ROLLED_BACK = {"40001", "40P01", "55P03"}
"""PostgreSQL's serialization failure, deadlock and lock timeout: certain not to have committed."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer; whether the last commit took place may be unknown."""


def connect(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL, set up as the protocol needs it."""
    if make_url(url).get_backend_name() == "sqlite":
        return _connect_sqlite(url)
    return create_engine(
        url,
        json_serializer=_to_json,
        json_deserializer=orjson.loads,
        pool_size=READERS + 2,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "options": "-c statement_timeout=15000 -c lock_timeout=5000",
        },
    )


def _connect_sqlite(url: str) -> Engine:
    engine = create_engine(
        url,
        json_serializer=_to_json,
        json_deserializer=orjson.loads,
        pool_size=READERS + 2,
        # The driver must not open transactions by itself: `begin` below says which kind.
        connect_args={"timeout": 15, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        # FULL: what was answered survives a power cut too; group commit shares the cost.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A writer takes its lock at once: a lock taken later may fail without waiting.
        reads = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _to_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    return config


def migrate(url: str) -> None:
    """Bring the tables to the newest revision; creates a SQLite file and its folder if need be."""
    if make_url(url).get_backend_name() == "sqlite":
        Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
    command.upgrade(_alembic(url), "head")


def revision(url: str) -> tuple[str | None, str | None]:
    """The revision the tables are at, and the newest there is."""
    engine = connect(url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return current, ScriptDirectory.from_config(_alembic(url)).get_current_head()


@dataclass(slots=True)
class _Call:
    work: Callable[[Session], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Transactions:
    """Run domain functions in a thread, each in a transaction that has committed when we return.

    Group commit: calls that arrive while a commit is under way share the next one. Each has a
    savepoint of its own, so that one that raises leaves its neighbours alone.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._writer = threading.Thread(target=self._write, name="commit", daemon=True)
        self._writer.start()

    async def __call__(
        self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`work(session, …)` in a write transaction. Raises what it raises, or `Unavailable`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        call = _Call(lambda session: work(session, *args, **kwargs), loop, future)
        with self._changed:
            if self._closed or len(self._waiting) >= QUEUE_LIMIT:
                raise DatabaseUnavailable("The database cannot keep up.")
            self._waiting.append(call)
            self._changed.notify()
        return await future

    async def read(
        self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`work(session, …)` where it only reads; never waits behind a writer."""
        if self._closed:
            raise DatabaseUnavailable("The database is closed.")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: self._read(work, *args, **kwargs))

    def close(self) -> None:
        """Finish what is under way, then let go of the database."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._writer.join()
        self._readers.shutdown()
        self._engine.dispose()

    def _read(
        self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        try:
            with self._engine.connect().execution_options(reads_only=True) as connection:
                return work(Session(connection, expire_on_commit=False), *args, **kwargs)
        except (OperationalError, InterfaceError) as error:
            raise DatabaseUnavailable("The database does not answer.") from error

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                group = [
                    self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP_LIMIT))
                ]
            self._commit(group)
            _answer(group)

    def _commit(self, group: list[_Call], tries: int = TRIES) -> None:
        """Commit the group as one; when the database surely undid it, each call on its own."""
        try:
            if len(group) == 1:
                self._commit_one(group[0])
            else:
                self._commit_together(group)
        except (OperationalError, InterfaceError) as error:
            if tries > 1 and getattr(error.orig, "sqlstate", None) in _ROLLED_BACK:
                for call in group:
                    self._commit([call], tries - 1)
            else:
                away = DatabaseUnavailable("The database does not answer.")
                away.__cause__ = error
                for call in group:
                    call.error = away
        except Exception as error:
            for call in group:
                call.error = error

    def _commit_one(self, call: _Call) -> None:
        call.error = None
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            call.result = call.work(session)

    def _commit_together(self, group: list[_Call]) -> None:
        with self._engine.begin() as connection:
            for call in group:
                call.error = None
                session = Session(
                    connection,
                    expire_on_commit=False,
                    join_transaction_mode="create_savepoint",
                )
                with session:
                    try:
                        call.result = call.work(session)
                        session.commit()
                    except (OperationalError, InterfaceError):
                        raise
                    except Exception as error:
                        session.rollback()
                        call.error = error


def _answer(group: list[_Call]) -> None:
    """Hand results over, with one wake-up of each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Call]] = {}
    for call in group:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, calls in by_loop.items():
        # A loop that has closed has nobody left to tell.
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, calls)


def _resolve(calls: list[_Call]) -> None:
    for call in calls:
        if call.future.cancelled():
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)
