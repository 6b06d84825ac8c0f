"""`make faults`: run a Sluice under faults again and again, and say what was lost and what doubled.

Without arguments about 10,000 jobs on both databases, in more than half an hour.

    python -m tests.faults --runs 1 --jobs 300 --seed 7 --database sqlite
    python -m tests.faults --write      # and puts the table into docs/durability.md
"""

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import sqlite
from tests.faults import report
from tests.faults.run import Progress, Result, run
from tests.postgres import Postgres, postgres

DATABASES = ("sqlite", "postgresql")
JOBS_A_SECOND = 8
LEAST_SECONDS = 30.0
SHOWN_EVERY = 10.0
"""Seconds between two lines of progress where nobody watches."""


def main() -> int:
    """Run as asked; 1 when a promise was broken."""
    asked = _arguments()
    # That a caller of the upstream is gone in mid-sentence is what this is about.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    print(f"seed {asked.seed}", flush=True)
    results = []
    for database in DATABASES if asked.database == "both" else [asked.database]:
        with ExitStack() as opened:
            server = opened.enter_context(postgres()) if database == "postgresql" else None
            for number in range(asked.runs):
                home = Path(tempfile.mkdtemp(prefix="sluice-faults-"))
                with _database(server, home) as url:
                    results.append(_one(url, home, server, asked.seed + number, asked))
    print(report.table(results))
    if asked.write:
        report.write(results)
    return int(any(result.violations for result in results))


def _one(
    url: str, home: Path, server: Postgres | None, seed: int, asked: argparse.Namespace
) -> Result:
    seconds = asked.seconds or max(LEAST_SECONDS, asked.jobs / JOBS_A_SECOND)
    result = run(
        url, home, seed=seed, count=asked.jobs, seconds=seconds, server=server, show=Shower()
    )
    print(f"\n{report.account(result)}", flush=True)
    if result.violations:
        again = f"--database {result.database} --seed {seed} --jobs {asked.jobs} --runs 1"
        print(f'  The logs are in {home}; make faults ARGS="{again}"', flush=True)
    else:
        shutil.rmtree(home)
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description="Kill everything in turn.")
    parser.add_argument("--jobs", type=int, default=1000, help="in each run")
    parser.add_argument("--runs", type=int, default=5, help="on each database")
    parser.add_argument("--database", choices=[*DATABASES, "both"], default="both")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the first")
    parser.add_argument("--seconds", type=float, help="for which faults strike, in each run")
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    return parser.parse_args()


@contextmanager
def _database(server: Postgres | None, home: Path) -> Iterator[str]:
    if server is not None:
        with server.fresh() as url:
            yield url
    else:
        yield sqlite.fresh(home)


class Shower:
    """Shows progress: on one line of a terminal, otherwise now and then."""

    def __init__(self) -> None:
        self._due = 0.0

    def __call__(self, progress: Progress) -> None:
        if sys.stdout.isatty():
            print(f"\r{progress}\033[K", end="", flush=True)
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + SHOWN_EVERY
            print(progress, flush=True)


if __name__ == "__main__":
    sys.exit(main())
