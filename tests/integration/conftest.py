"""What the tests of the domain share."""

from collections.abc import Iterator

import pytest

from tests.factories import Sessions


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    """Transactions on a migrated, empty database of each kind."""
    opened = Sessions(database_url)
    yield opened
    opened.close()
