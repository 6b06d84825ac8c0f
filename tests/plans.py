"""What is asked of the jobs, and how the database goes about it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from tests.factories import Sessions


@contextmanager
def recorded(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of `jobs` meanwhile."""
    seen: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if re.match(r"SELECT|WITH|UPDATE|DELETE", statement) and re.search(r"\bjobs\b", statement):
            seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def explained(sessions: Sessions, statement: str, parameters: Any) -> str:
    """The plan of a statement, as text."""
    with sessions() as session:
        connection = session.connection()
        if sessions.is_sqlite:
            how = "EXPLAIN QUERY PLAN "
        else:
            how = "EXPLAIN "
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plan = connection.exec_driver_sql(how + statement, parameters)
        return "\n".join(str(tuple(row)) for row in plan)
