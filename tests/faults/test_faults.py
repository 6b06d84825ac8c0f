"""The bounded part of the suite: each fault once or more, on each database."""

from pathlib import Path

import pytest

from tests.faults.report import account
from tests.faults.run import run
from tests.postgres import Postgres

SEED = 5
JOBS = 150
SECONDS = 30.0


@pytest.mark.timeout(240)
def test_nothing_is_lost_and_nothing_happens_twice(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> None:
    """Whatever dies, stops, stalls or forgets: every accepted job ends, once, as it should."""
    in_a_file = database_url.startswith("sqlite")
    server: Postgres | None = None if in_a_file else request.getfixturevalue("postgres_server")
    result = run(database_url, tmp_path, seed=SEED, count=JOBS, seconds=SECONDS, server=server)

    assert not result.violations, account(result)
    assert result.jobs >= JOBS
