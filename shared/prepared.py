"""Statements that go to the driver as text that is kept: for those that end every job.

SQLAlchemy looks up what it has compiled, and binds value by value, each time; that takes longer
than to run them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, CursorResult, Dialect, Executable

Written = Callable[[Mapping[str, Any]], tuple[Any, ...] | dict[str, Any]]


def run(
    connection: Connection, statement: Executable, many: Sequence[Mapping[str, Any]]
) -> CursorResult[Any]:
    """Run a statement with each of these parameters; callers keep it, for it is known by itself.

    What it returns is as the driver has it. Lists that are bound to one name are not possible.
    """
    text, written = _prepared(statement, tuple(many[0]), connection.dialect)
    return connection.exec_driver_sql(text, [written(each) for each in many])


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
