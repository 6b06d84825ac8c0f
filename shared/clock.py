"""Moments are integers: Unix milliseconds, UTC.

Only the database's clock decides whether something is due (`due_at`): the machines of a fleet
disagree, and nothing here compares the clocks of two of them.
"""

import time
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement, FunctionElement


def now() -> int:
    """This machine's wall clock, for what is only shown, never compared."""
    return time.time_ns() // 1_000_000


def seconds(moment: int | None) -> int | None:
    """Unix seconds, as OpenAI's wire has them."""
    return None if moment is None else moment // 1000


def milliseconds(seconds: int | None) -> int | None:
    """A moment from Unix seconds, as OpenAI's wire has them."""
    return None if seconds is None else seconds * 1000


def span(time: timedelta) -> int:
    """A span of time in milliseconds."""
    return time // timedelta(milliseconds=1)


class database_now(FunctionElement[int]):  # noqa: N801  (reads as the SQL function it is)
    """The database's own clock in Unix milliseconds, as an SQL expression."""

    type = BigInteger()
    inherit_cache = True


@compiles(database_now, "postgresql")
def _postgresql(*_: Any, **__: Any) -> str:
    # Not clock_timestamp(): that may change within a statement, so no index can be searched by it.
    return "(extract(epoch from statement_timestamp()) * 1000)::bigint"


@compiles(database_now, "sqlite")
def _sqlite(*_: Any, **__: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


def due_at(after_ms: int = 0) -> ColumnElement[int]:
    """`after_ms` milliseconds from the database's now."""
    return database_now() + after_ms
