"""Lists that are read in pages, newest first: a cursor is the id of the last row that was seen."""

from typing import Any, Final, TypeVar

from sqlmodel import Session
from sqlmodel.sql.expression import SelectOfScalar

from shared import ids
from shared.errors import InvalidRequest

MOST: Final = 100
"""Rows of a page, unless its reader says otherwise."""
Row = TypeVar("Row")


def page(
    session: Session,
    rows: SelectOfScalar[Row],
    row_id: Any,
    *,
    prefix: str,
    after: str | None,
    limit: int,
) -> tuple[list[Row], bool]:
    """The newest of these rows, or those before the one of that id; whether there are more.

    `row_id` is the column of ids that begin with `prefix` and grow with time. Raises
    `InvalidRequest` for a cursor that is no such id.
    """
    if after is not None:
        if not ids.is_prefixed(after, prefix):
            raise InvalidRequest("There is nothing of this id to go on after.", param="after")
        rows = rows.where(row_id < after)
    found = session.exec(rows.order_by(row_id.desc()).limit(limit + 1)).all()
    return list(found[:limit]), len(found) > limit
