"""The migrations make what the tables promise."""

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.schema import CreateIndex
from sqlmodel import SQLModel

from shared import db, tables
from tests.factories import Sessions


def test_the_migrated_database_has_the_tables_as_they_are_written(sessions: Sessions) -> None:
    """Columns, types, keys and constraints; nothing is left to migrate."""
    with sessions() as session:
        context = MigrationContext.configure(session.connection())

        assert compare_metadata(context, SQLModel.metadata) == []
    current, newest = db.revision(sessions.url)
    assert current == newest is not None


def test_its_indexes_hold_the_rows_they_say(sessions: Sessions) -> None:
    """Alembic does not compare the conditions of partial indexes."""
    with sessions() as session:
        if not sessions.is_sqlite:
            return  # the same migration, and PostgreSQL rewrites what it was told
        found = session.connection().execute(
            text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        )
        made = {name: " ".join(sql.split()) for name, sql in found}
    written = {
        str(index.name): " ".join(str(CreateIndex(index).compile(sessions.engine)).split())
        for table in (tables.Job, tables.Worker, tables.JobMetadata, tables.ApiKey)
        for index in SQLModel.metadata.tables[str(table.__tablename__)].indexes
    }

    assert {name: made.get(name) for name in written} == written
