"""Alembic's entry point: run the revisions against the URL that `shared.revisions` was given."""

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

from shared import db, tables

assert tables  # its import fills SQLModel.metadata


def run() -> None:
    """Upgrade in one transaction."""
    engine = db.connect(context.config.attributes["url"])
    try:
        with engine.connect() as connection:
            _run(connection)
    finally:
        engine.dispose()


def _run(connection: Connection) -> None:
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        # What cannot be altered is made anew under its name while other rows refer to it. Once the
        # transaction has begun it is too late to allow that.
        connection.connection.cursor().execute("PRAGMA foreign_keys = OFF")
    context.configure(
        connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True
    )
    with context.begin_transaction():
        if not sqlite:
            context.execute("SET statement_timeout = 0")  # an index takes its time
        context.run_migrations()
        if sqlite:
            astray = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            if astray:
                raise RuntimeError(f"rows that refer to none: {astray}")


run()
