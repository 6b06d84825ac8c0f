"""The tables' revisions; beside `shared.db`, so that api and workers start without Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from shared import db

MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(url: str, to: str = "head") -> None:
    """Bring the tables to the newest revision, or `to` one; creates a SQLite file if need be."""
    if make_url(url).get_backend_name() == "sqlite":
        Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
    for left in reversed(range(db.TRIES)):
        try:
            command.upgrade(_alembic(url), to)
            break
        except DBAPIError as error:  # whoever uses the tables may take them the other way round
            if not left or not db.undone(error):
                raise


def compare(url: str) -> tuple[str | None, str | None]:
    """The revision the tables are at, and the newest there is."""
    engine = db.connect(url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return current, ScriptDirectory.from_config(_alembic(url)).get_current_head()


def _alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    return config
