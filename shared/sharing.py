"""Calls that share a transaction: in savepoints of their own, or in statements for all alike."""

from collections.abc import Callable
from typing import Any, TypeGuard

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlmodel import Session

from shared.calls import Call
from shared.errors import ServiceError

log = structlog.get_logger()

_OURS = (IntegrityError, DataError, ProgrammingError, NotSupportedError)
"""Errors of a statement."""


def is_theirs(error: Exception) -> TypeGuard[DBAPIError]:
    """Whether an error is the database's, and no statement's: gone, locked, full, broken."""
    return isinstance(error, DBAPIError) and not isinstance(error, _OURS)


def kind(call: Call[Any]) -> tuple[str, object]:
    """What calls have in common that are done at once; others have it with nobody."""
    return call.account_id, call.many or call.work


def run(calls: list[Call[Any]], connection: Connection, *, alone: bool) -> None:
    """Do what calls of one kind ask for, if need be one by one; `alone` in their transaction."""
    if calls[0].many is not None and len(calls) > 1:
        if _run_together(calls[0].many, calls, connection, alone=alone):
            return
        if alone:  # without a savepoint everything was undone
            connection.begin()
    for call in calls:
        _run_one(call, connection, alone=alone and len(calls) == 1)


def _run_together(
    many: Callable[[Session, list[Any]], list[Any]],
    calls: list[Call[Any]],
    connection: Connection,
    *,
    alone: bool,
) -> bool:
    """Do what they ask for at once, in a savepoint unless alone; False when that failed."""
    with _session(connection, alone=alone) as session:
        try:
            results = many(session, [call.item for call in calls])
            session.commit()
        except Exception as error:
            if is_theirs(error):
                raise
            if not isinstance(error, ServiceError):  # that one is told to whoever caused it
                log.warning("together_failed", error=repr(error))
            session.rollback()
            return False
    for call, result in zip(calls, results, strict=True):
        call.error, call.result = None, result
    return True


def _run_one(call: Call[Any], connection: Connection, *, alone: bool) -> None:
    """Do what one call asks for, in a savepoint unless it is alone; its failure is its own."""
    call.error = None
    with _session(connection, alone=alone) as session:
        try:
            call.result = call.work(session)
            session.commit()
        except Exception as error:
            if is_theirs(error):
                raise
            session.rollback()
            call.error = error


def _session(connection: Connection, *, alone: bool) -> Session:
    mode: Any = "rollback_only" if alone else "create_savepoint"
    return Session(connection, expire_on_commit=False, join_transaction_mode=mode)
