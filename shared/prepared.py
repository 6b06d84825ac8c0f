"""Statements that go to the driver as text that is kept: for those that end every job.

SQLAlchemy looks up what it has compiled, and binds value by value, each time; that takes longer
than to run them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, CursorResult, Dialect, Executable
from sqlalchemy.exc import DBAPIError

Written = Callable[[Mapping[str, Any]], tuple[Any, ...] | dict[str, Any]]


def run(
    connection: Connection, statement: Executable, many: Sequence[Mapping[str, Any]]
) -> CursorResult[Any]:
    """Run a statement with each of these parameters; callers keep it, for it is known by itself.

    What it returns is as the driver has it. Lists that are bound to one name are not possible.
    """
    text, written = _prepared(statement, tuple(many[0]), connection.dialect)
    return connection.exec_driver_sql(text, [written(each) for each in many])


def each(
    connection: Connection, statement: Executable, many: Sequence[Mapping[str, Any]]
) -> list[tuple[Any, ...] | None]:
    """The same of one that changes a row and returns something of it: what each returned.

    To PostgreSQL all of them go in one round trip.
    """
    text, written = _prepared(statement, tuple(many[0]), connection.dialect)
    named = [written(each) for each in many]
    with driver_of(connection, text) as driver:
        if connection.dialect.name == "sqlite" or len(named) == 1:
            return [driver.execute(text, each).fetchone() for each in named]
        with driver.cursor() as cursor:
            cursor.executemany(text, named, returning=True)
            return [result.fetchone() for result in cursor.results()]


@contextmanager
def driver_of(connection: Connection, text: str) -> Iterator[Any]:
    """The driver's own connection, to run this; what that raises comes as SQLAlchemy raises it."""
    errors: Any = connection.dialect.dbapi
    try:
        yield connection.connection.driver_connection
    except errors.Error as error:
        told: Any = DBAPIError.instance(text, None, error, errors.Error)
        raise told from error


@lru_cache(256)
def _prepared(
    statement: Executable, given: tuple[str, ...], dialect: Dialect
) -> tuple[str, Written]:
    compiled: Any = statement.compile(dialect=dialect, column_keys=given)  # type: ignore[attr-defined]
    own = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
    writers = {
        name: write
        for name, bind in compiled.binds.items()
        if (write := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
    }
    places = compiled.positiontup

    def written(values: Mapping[str, Any]) -> tuple[Any, ...] | dict[str, Any]:
        values = {**own, **values}
        for name, write in writers.items():
            values[name] = write(values[name])
        return values if places is None else tuple([values[name] for name in places])

    return compiled.string, written
