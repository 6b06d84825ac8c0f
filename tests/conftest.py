"""Real parts for every test: databases, Valkey, a scripted upstream, stacks of processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import sqlite
from tests.fakes.upstream import ScriptedUpstream
from tests.postgres import Postgres, postgres
from tests.stack import QUICK_LEASES, Stack
from tests.valkey import Valkey, valkey


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One PostgreSQL for the run."""
    with postgres() as server:
        yield server


DATABASES = ["sqlite", "postgresql"]


@contextmanager
def migrated(request: pytest.FixtureRequest, directory: Path) -> Iterator[str]:
    """The URL of a fresh database of the kind that the fixture's parameter names."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres_server")
        with server.fresh() as url:
            yield url
    else:
        yield sqlite.fresh(directory)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated, empty database of each kind."""
    with migrated(request, tmp_path) as url:
        yield url


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of the test's own, append-only file on."""
    with started_valkey(tmp_path) as server:
        yield server


@contextmanager
def started_valkey(directory: Path) -> Iterator[Valkey]:
    """A Valkey with its files in a folder of `directory`."""
    (directory / "valkey").mkdir()
    with valkey(directory / "valkey") as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """A server that says what the test scripts."""
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture
def stack(
    tmp_path: Path, database_url: str, redis_server: Valkey, upstream: ScriptedUpstream
) -> Iterator[Stack]:
    """Everything but the processes, for a test that starts and kills its own."""
    with Stack(tmp_path, database_url, redis_server.url, upstream) as opened:
        opened.environment |= QUICK_LEASES
        yield opened


@contextmanager
def parts(directory: Path, database_url: str | None = None) -> Iterator[Stack]:
    """Everything but the processes, for a module; on SQLite unless told."""
    if database_url is None:
        database_url = sqlite.fresh(directory)
    with (
        started_valkey(directory) as redis,
        ScriptedUpstream() as upstream,
        Stack(directory, database_url, redis.url, upstream) as opened,
    ):
        yield opened


@pytest.fixture(scope="module", params=DATABASES)
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A running service that the tests of a module share; they leave its processes alone."""
    home = tmp_path_factory.mktemp("service")
    with migrated(request, home) as url, parts(home, url) as opened:
        yield opened.up()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the service does."""
    return "asyncio"
