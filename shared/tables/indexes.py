"""Indexes of a part of a table."""

from sqlalchemy import Index, text


def partial(name: str, *columns: str, condition: str, unique: bool = False) -> Index:
    """An index that holds only the rows its one query is about."""
    clause = text(condition)
    return Index(name, *columns, unique=unique, sqlite_where=clause, postgresql_where=clause)
