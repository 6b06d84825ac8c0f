"""The database: connect, and the one seam between async code and sync domain functions."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from shared import engines, sharing
from shared.calls import Call, hand_over
from shared.engines import patience
from shared.errors import Unavailable
from shared.looks import Looks

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

GROUP_LIMIT = 256
"""Calls that share one transaction, at most."""
GROUP_SECONDS = 1.0
"""For how long calls may go on joining a transaction: those behind them would time out."""
QUEUE_LIMIT = 20_000
"""Calls that may wait for the database before more are refused."""
READERS = 4
ANSWER_WITHIN = 10.0
"""Seconds from a call to its answer, if only that the database does not answer."""
TRIES = 4
"""Times a call is tried that the database undid for another's sake."""
TOO_SLOW = "The database did not answer in time."
CROWD = 4
"""Calls in a transaction that show that others are on their way, each a moment after another."""
MOMENT = 0.001
"""Seconds for which the next transaction waits for them: they cost less together."""
ENOUGH = 32
"""Calls for which it waits no longer."""
LATELY = 0.02
"""Seconds after which a crowd is none any more."""
_ROLLED_BACK = {"40001", "40P01", "55P03"}
"""PostgreSQL's serialization failure, deadlock and lock timeout: certain not to have committed."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or not in time."""

    def __init__(self, message: str, *, maybe_committed: bool = False) -> None:
        super().__init__(message)
        self.maybe_committed = maybe_committed
        """Whether the transaction may have taken place all the same; else it has not."""


def connect(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL, set up as the protocol needs it."""
    return engines.open_engine(url)


def undone(error: Exception) -> bool:
    """Whether the database undid a transaction for another's sake: it may be tried again."""
    return _sqlstate(error) in _ROLLED_BACK


class Transactions:
    """Run domain functions in a thread, each in a transaction that has committed when we return.

    Group commit: calls that arrive while a commit is under way share the next one, and so do those
    of a moment when they come in crowds. Each has a savepoint of its own, so that one that raises
    leaves its neighbours alone. Every call is answered `within` so many seconds, whatever becomes
    of the database.
    """

    def __init__(self, engine: Engine, *, within: float = ANSWER_WITHIN) -> None:
        self._engine = engine
        self._within = within
        self._waiting: deque[Call[Any]] = deque()
        self._changed = threading.Condition()
        self._gathers = False
        self._closed = False
        self._causes: set[str] = set()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._writer = threading.Thread(target=self._write, name="commit", daemon=True)
        self._writer.start()
        self._looks = {long: Looks(self._read) for long in (False, True)}

    async def __call__(
        self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`work(session, …)` in a write transaction. Raises what it raises, or `Unavailable`."""
        return await self.by("", work, *args, **kwargs)

    async def by(
        self,
        account_id: str,
        work: Callable[Concatenate[Session, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """The same, for work that moves an account's credits.

        A group's calls take their accounts in order, as those of every other process do: two that
        took them crosswise would wait for each other.
        """
        call = self._call(lambda session: work(session, *args, **kwargs), account_id)
        return await self._written(call)

    async def alone(
        self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The same, for work that moves the credits of several accounts, which it takes in order.

        It shares its transaction with nobody, whose accounts might come before.
        """
        call = self._call(lambda session: work(session, *args, **kwargs), alone=True)
        return await self._written(call)

    async def together(
        self, account_id: str, work: Callable[[Session, list[T]], list[R]], item: T
    ) -> R:
        """What `work(session, items)` makes of this item, together with those of other calls.

        They share not only the transaction but the statements. When that raises, each is tried
        by itself.
        """
        call = self._call(
            lambda session: work(session, [item])[0], account_id, many=work, item=item
        )
        return await self._written(call)

    async def _written(self, call: Call[R]) -> R:
        with self._changed:
            if self._closed or len(self._waiting) >= QUEUE_LIMIT:
                raise DatabaseUnavailable("The database cannot keep up.")
            self._waiting.append(call)
            if not self._gathers or len(self._waiting) >= ENOUGH:
                self._changed.notify()
        return await self._answered(call)

    def _call(self, work: Callable[[Session], R], account_id: str = "", **kind: Any) -> Call[R]:
        loop = asyncio.get_running_loop()
        return Call(work, loop, loop.create_future(), account_id, **kind)

    async def _answered(self, call: Call[R]) -> R:
        bound = call.loop.call_later(self._within, self._give_up, call)
        try:
            return await call.future
        finally:
            bound.cancel()

    async def look(
        self, work: Callable[[Session, list[T]], list[R]], item: T, *, long: bool = False
    ) -> R:
        """What `work(session, items)` makes of this item, where it only reads.

        It is asked at once for all that wait; when that raises, for each by itself. What may take
        `long` delays nothing but its like.
        """
        if self._closed:
            raise DatabaseUnavailable("The database is closed.")
        call = self._call(lambda session: work(session, [item])[0], many=work, item=item)
        self._looks[long].put(call)
        return await self._answered(call)

    async def read(
        self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`work(session, …)` where it only reads; never waits behind a writer."""
        if self._closed:
            raise DatabaseUnavailable("The database is closed.")
        loop = asyncio.get_running_loop()
        until = time.monotonic() + self._within
        try:
            async with asyncio.timeout(self._within) as bound:
                return await loop.run_in_executor(
                    self._readers,
                    self._read,
                    lambda session: work(session, *args, **kwargs),
                    until,
                )
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise DatabaseUnavailable(TOO_SLOW) from error

    def close(self) -> None:
        """Finish what is under way, or give it up in time, then let go of the database."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._writer.join(self._within)
        for looks in self._looks.values():
            looks.close(self._within)
        self._readers.shutdown(cancel_futures=True)
        self._engine.dispose()

    def _give_up(self, call: Call[Any]) -> None:
        with self._changed, suppress(ValueError):
            self._waiting.remove(call)
        if not call.future.done():
            late = DatabaseUnavailable(TOO_SLOW, maybe_committed=call.under_way)
            call.future.set_exception(late)

    def _begun(self, *, reads_only: bool = False) -> Connection:
        """A connection with an open transaction, which the caller closes."""
        with patience(time.monotonic() + self._within / 2):
            connection = self._engine.connect().execution_options(reads_only=reads_only)
            try:
                connection.begin()
            except BaseException:
                connection.close()
                raise
        return connection

    def _read(self, work: Callable[[Session], R], until: float | None = None) -> R:
        until = until or time.monotonic() + self._within
        try:
            with self._begun(reads_only=True) as connection, patience(until):
                return work(Session(connection, expire_on_commit=False))
        except DBAPIError as error:
            if not sharing.is_theirs(error):
                raise
            raise self._away(error) from error

    def _write(self) -> None:
        crowded_until = 0.0
        while self._awaited():
            if time.monotonic() < crowded_until:
                self._gather()
            asked_at = time.monotonic()
            try:
                connection = self._begun()
            except Exception as error:
                group = self._made_by(asked_at)
                self._fail(group, error)
            else:
                group = self._next_group()
                if self._commit(connection, group):
                    for call in group:
                        self._commit_alone(call)
            if len(group) >= CROWD:
                crowded_until = time.monotonic() + LATELY
            hand_over(group)

    def _awaited(self) -> bool:
        """Wait for calls; False when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return bool(self._waiting)

    def _gather(self) -> None:
        """Wait a moment for more calls."""
        with self._changed:
            self._gathers = True  # to be woken by each of them would cost more than it saves
            self._changed.wait_for(lambda: len(self._waiting) >= ENOUGH or self._closed, MOMENT)
            self._gathers = False

    def _made_by(self, moment: float) -> list[Call[Any]]:
        """The calls that have waited since; they fail together, as one attempt did for all."""
        with self._changed:
            many = sum(call.made_at <= moment for call in self._waiting)
            return [self._waiting.popleft() for _ in range(many)]

    def _next_group(self) -> list[Call[Any]]:
        """The calls for the transaction that has begun; only from here on may they take place."""
        with self._changed:
            group: list[Call[Any]] = []
            while self._waiting and len(group) < GROUP_LIMIT:
                if group and (group[0].alone or self._waiting[0].alone):
                    break
                group.append(self._waiting.popleft())
            group.sort(key=lambda call: (call.account_id, call.many is not None))
            for call in group:
                call.under_way = True
        return group

    def _commit(self, connection: Connection, group: list[Call[Any]]) -> bool:
        """Commit the group as one; True when the database surely undid it, for another's sake."""
        committing = False
        try:
            # Sooner than the calls give up: then they can be told whether it may have committed.
            with connection, patience(time.monotonic() + 0.8 * self._within):
                self._run_all(connection, group)
                committing = True
                if connection.in_transaction():
                    connection.commit()
        except Exception as error:
            again = undone(error)
            self._fail(group, error, maybe_committed=committing and not again)
            return again
        if self._causes:
            log.info("database_back")
            self._causes.clear()
        return False

    def _run_all(self, connection: Connection, group: list[Call[Any]]) -> None:
        """Do what the calls ask for; those for which it gets late go back to the queue."""
        began, number = time.monotonic(), 0
        for _, calls in groupby(group, key=sharing.kind):
            some = list(calls)
            if time.monotonic() - began > GROUP_SECONDS:
                late = group[number:]
                del group[number:]
                with self._changed:
                    for each in late:
                        each.under_way = False
                    self._waiting.extendleft(reversed(late))
                return
            sharing.run(some, connection, alone=len(some) == len(group))
            number += len(some)

    def _commit_alone(self, call: Call[Any]) -> None:
        """Try a call again that the database undid."""
        for _ in range(TRIES - 1):
            if call.future.done():
                break
            try:
                connection = self._begun()
            except Exception as error:
                self._fail([call], error)
                break
            if not self._commit(connection, [call]):
                break

    def _fail(
        self, group: list[Call[Any]], error: Exception, *, maybe_committed: bool = False
    ) -> None:
        for call in group:
            call.error = error
            if sharing.is_theirs(error):
                call.error = self._away(error, maybe_committed=maybe_committed)

    def _away(self, error: DBAPIError, *, maybe_committed: bool = False) -> DatabaseUnavailable:
        """What callers are told; what is the matter goes to the log, once."""
        cause = str(error.orig)
        if cause not in self._causes:
            self._causes.add(cause)
            log.warning("database_away", error=cause)
        away = DatabaseUnavailable("The database does not answer.", maybe_committed=maybe_committed)
        away.__cause__ = error
        return away


def _sqlstate(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)
