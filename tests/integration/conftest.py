"""What the tests of the domain and of workers share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.factories import Sessions
from tests.fakes.upstream import ScriptedUpstream
from tests.shop import Shop, open_shop
from tests.valkey import Valkey


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    """Transactions on a migrated, empty database of each kind."""
    opened = Sessions(database_url)
    yield opened
    opened.close()


@pytest.fixture
async def shop(
    tmp_path: Path, database_url: str, redis_server: Valkey, upstream: ScriptedUpstream
) -> AsyncIterator[Shop]:
    """A worker's bench with short leases."""
    async with open_shop(tmp_path, database_url, redis_server.url, upstream) as opened:
        yield opened
