"""Alembic's entry point: run the revisions against the URL that `shared.db.migrate` was given."""

from alembic import context
from sqlmodel import SQLModel

from shared import db, tables

assert tables  # its import fills SQLModel.metadata


def run() -> None:
    """Upgrade in one transaction."""
    engine = db.connect(context.config.attributes["url"])
    with engine.connect() as connection:
        context.configure(
            connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True
        )
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                context.execute("SET statement_timeout = 0")  # an index takes its time
            context.run_migrations()
    engine.dispose()


run()
