"""The migrations make what the tables promise."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex
from sqlmodel import Session, SQLModel, select

from shared import db, revisions, tables
from tests.factories import Sessions
from tests.postgres import Postgres
from tests.stack import eventually

ROWS = (
    "INSERT INTO accounts (id, name, credits, created_at) VALUES ('acc', 'ours', 5, 1)",
    "INSERT INTO api_keys (id, public_id, secret_hash, account_id, scopes, created_at)"
    " VALUES ('key', 'public', 'hash', 'acc', '[]', 1)",
)
"""What the first tables held."""


def test_the_migrated_database_has_the_tables_as_they_are_written(sessions: Sessions) -> None:
    """Columns, types, keys and constraints; nothing is left to migrate."""
    with sessions() as session:
        context = MigrationContext.configure(session.connection())

        assert compare_metadata(context, SQLModel.metadata) == []
    current, newest = revisions.compare(sessions.url)
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
        for table in (
            tables.Job,
            tables.Worker,
            tables.JobMetadata,
            tables.ApiKey,
            tables.File,
            tables.Delivery,
            tables.Batch,
        )
        for index in SQLModel.metadata.tables[str(table.__tablename__)].indexes
    }

    assert {name: made.get(name) for name in written} == written


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_tables_with_rows_in_them_are_migrated(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From the first revision on, rows stay, and so does what refers to them."""
    with ExitStack() as opened:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path / 'sluice.db'}"
        else:
            server: Postgres = request.getfixturevalue("postgres_server")
            url = opened.enter_context(server.fresh("template1"))
        revisions.migrate(url, "0001")
        engine = db.connect(url)
        with engine.begin() as connection:
            for row in ROWS:
                connection.execute(text(row))

        revisions.migrate(url)

        with Session(engine) as session:
            key = session.exec(select(tables.ApiKey)).one()
            account = session.get_one(tables.Account, key.account_id)
            assert (account.credits, account.held, key.spent) == (5, 0, 0)
            session.delete(account)
            with pytest.raises(IntegrityError):
                session.flush()
        engine.dispose()


def test_a_migration_that_processes_get_in_the_way_of_is_tried_again(
    postgres_server: Postgres,
) -> None:
    """They take tables in the order of their work: one of the two has to give way."""
    with postgres_server.fresh("template1") as url, ThreadPoolExecutor() as pool:
        revisions.migrate(url, "0002")
        engine = db.connect(url)
        alone = engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as busy, alone.connect() as looking:
            busy.execute(text("SET deadlock_timeout = '1min'"))  # the other gives way
            busy.execute(text("LOCK TABLE jobs IN ROW EXCLUSIVE MODE"))
            migrating = pool.submit(revisions.migrate, url)
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            eventually(lambda: looking.execute(waiting).scalar())
            busy.execute(text("LOCK TABLE accounts IN ROW SHARE MODE"))
            busy.commit()
            migrating.result()
        engine.dispose()

        current, newest = revisions.compare(url)
    assert current == newest is not None
