"""Open SQLite or PostgreSQL as the protocol needs it, and wait for an answer only so long."""

import math
import select
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar

import orjson
import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url

RV = TypeVar("RV")

POOL_SIZE: Final = 7
"""A process's writer, its four readers, and two that look for many."""
CONNECT_WITHIN: Final = 5
"""Seconds; a server may accept a connection and then say nothing."""
BUSY_WITHIN: Final = 8
"""Seconds a writer waits while another process writes to the same SQLite file."""
FRESH: Final = 1.0
"""Seconds for which a connection is taken to be well that was heard of, unless it is closed."""
LOOK_EVERY: Final = 0.001
"""Seconds from one look at its lock to the next."""
POSTGRESQL_OPTIONS: Final = {
    # The server gives up before we do, so that we know what became of a statement; and it lets go
    # of what a client holds that it no longer hears from.
    "options": "-c statement_timeout=7000 -c lock_timeout=5000"
    " -c idle_in_transaction_session_timeout=15000",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_until: ContextVar[float | None] = ContextVar("until", default=None)


@contextmanager
def patience(until: float) -> Iterator[None]:
    """In this thread, wait for PostgreSQL until then (`time.monotonic()`) and no longer.

    What it has not answered by then fails with `OperationalError`, and its connection is closed.
    """
    token = _until.set(until)
    try:
        yield
    finally:
        _until.reset(token)


class _Connection(psycopg.Connection[Any]):
    """A connection that is given up with its thread's patience."""

    heard_at = -math.inf
    """By `time.monotonic`."""

    def seems_well(self) -> bool:
        """Whether it was heard of a moment ago, and its server has not said goodbye since."""
        if time.monotonic() - self.heard_at > FRESH:
            return False
        unasked = select.poll()
        unasked.register(self.fileno(), select.POLLIN)
        return not unasked.poll(0)

    def rollback(self) -> None:
        """Undo the transaction; what is prepared stays so, unless a statement has failed.

        psycopg would drop it all, as if a table might come back another, with every read's end.
        """
        if self.pgconn.transaction_status != TransactionStatus.INTRANS:
            super().rollback()
            return
        with self.lock:
            self.wait(self._exec_command(b"ROLLBACK"))

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for the server's answer, as psycopg does in all that it sends."""
        until = _until.get()
        if until is not None:
            timeout = max(0.0, until - time.monotonic())
        try:
            answer = super().wait(gen, interval, timeout)
        except psycopg.errors._WaitTimeout as error:
            # The answer may still come; nothing else may be asked here.
            self.pgconn.finish()
            raise psycopg.OperationalError("the server did not answer in time") from error
        self.heard_at = time.monotonic()
        return answer


def open_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL."""
    sqlite = make_url(url).get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
        pool_size=POOL_SIZE,
        # One in turn with the others would be cold: each has statements and pages of its own.
        pool_use_lifo=True,
        pool_pre_ping=not sqlite,
        # SQLite's driver must not open transactions by itself: `begin` below says which kind.
        connect_args={"timeout": BUSY_WITHIN, "isolation_level": None}
        if sqlite
        else POSTGRESQL_OPTIONS,
    )
    if sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "do_connect", _connect_postgresql)
        # SQLAlchemy would ask before each transaction, which takes a round trip.
        dialect: Any = engine.dialect
        dialect.do_ping = partial(_ping, dialect.do_ping)
    return engine


def _set_up_sqlite(connection: Any, _: Any) -> None:
    # FULL: what was answered survives a power cut too; group commit shares the cost.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    if connection.get_execution_options().get("reads_only", False):
        driver.execute("BEGIN")
    elif not _locked(driver):
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # fails, as SQLAlchemy has it


def _locked(driver: sqlite3.Connection) -> bool:
    """Whether this connection is the file's writer now, waiting for its turn if need be.

    A writer takes its lock at once: a lock taken later may fail without waiting. SQLite itself
    looks more and more seldom, in the end ten times a second, while others pass.
    """
    until = time.monotonic() + BUSY_WITHIN
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return True
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > until:
                    return False
            time.sleep(LOOK_EVERY)
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_WITHIN * 1000}")


def _connect_postgresql(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    until = _until.get()
    left = CONNECT_WITHIN if until is None else math.ceil(until - time.monotonic())
    within = max(1, min(left, CONNECT_WITHIN))
    return _Connection.connect(*arguments, **{"connect_timeout": within, **options})


def _ping(ask: Callable[[_Connection], bool], connection: _Connection) -> bool:
    return connection.seems_well() or ask(connection)
