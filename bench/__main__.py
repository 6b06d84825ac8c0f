"""`make bench`: every figure of `docs/performance.md`, on SQLite and on PostgreSQL, in one run.

Machines are noisy: compare figures of one run, and CPU before seconds.

    python -m bench                                  # all of it, in half an hour
    python -m bench --only held,words --database sqlite
    python -m bench --peers relay,litellm,portkey    # others, in front of the same upstream
    python -m bench --write                          # and puts the tables into the document
"""

import argparse
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple

from bench import answers, celery_floor, growth, peers, report, starts, throughput
from bench.figures import Figure
from bench.service import Service, Target, running
from tests.postgres import postgres


class Group(NamedTuple):
    """What is measured on one service, so that no group finds what another left."""

    measures: Sequence[Callable[[Service], Figure | list[Figure]]]
    workers: int = 1
    settings: Mapping[str, str] = MappingProxyType({})


COMPARED: Final[Mapping[str, Sequence[Callable[[Target], Figure]]]] = {
    "held": [answers.held],
    "words": [partial(answers.words, streams=100), partial(answers.words, streams=500)],
    "first": [answers.first],
}
"""Groups that others can be measured by."""
MANY: Final = {"SLUICE_WORKER_CONCURRENCY": "6000"}
ONE: Final = {"SLUICE_WORKER_CONCURRENCY": "1"}
CONNECTIONS: Final = 1_000
GROUPS: Final = {
    **{name: Group(measures) for name, measures in COMPARED.items()},
    "accepts": Group([throughput.accepts], workers=0),
    "celery": Group([celery_floor.figures], workers=0),
    "bulk": Group([throughput.bulk, throughput.drain], workers=0),
    "batch": Group([throughput.batch]),
    "open": Group(
        [partial(answers.open_streams, streams=streams) for streams in (50, 500, 5_000)],
        workers=4,
        settings=MANY,
    ),
    "flight": Group([partial(answers.in_flight, jobs=1_000)], settings=MANY),
    "starts": Group([starts.figures], workers=0),
    "growth": Group([partial(growth.table, jobs=jobs) for jobs in growth.TABLE], workers=0),
    "queued": Group([partial(growth.queued, jobs=jobs) for jobs in growth.QUEUE], settings=ONE),
    "workers": Group([partial(growth.attached, workers=count) for count in growth.WORKERS]),
}
DATABASES: Final = ("sqlite", "postgresql")


def main() -> None:
    """Measure what is asked for, and print it as it comes."""
    asked = _arguments()
    tables = {}
    groups = asked.only or list(GROUPS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # thousands of connections
    try:
        for peer in asked.peers:
            tables[peer] = list(_of_peer(peer, groups))
        for database in DATABASES if asked.database == "both" else [asked.database]:
            tables[database] = list(_figures(database, groups))
    finally:
        if asked.write:
            report.write(tables)


def _of_peer(name: str, groups: list[str]) -> Iterator[Figure]:
    with peers.running(name) as target:
        answers.warm(target)
        for measure in [measure for group in groups for measure in COMPARED.get(group, ())]:
            figure = measure(target)
            print(report.line(name, figure), flush=True)
            yield figure


def _figures(database: str, groups: list[str]) -> Iterator[Figure]:
    with ExitStack() as opened:
        server = None
        if database == "postgresql":
            server = opened.enter_context(postgres())
            server.admit(CONNECTIONS)
        for group in map(GROUPS.__getitem__, groups):
            with running(
                *answers.MODELS, postgres=server, workers=group.workers, **group.settings
            ) as service:
                if group.workers:
                    answers.warm(service)
                for measure in group.measures:
                    found = measure(service)
                    for figure in found if isinstance(found, list) else [found]:
                        print(report.line(database, figure), flush=True)
                        yield figure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=[*DATABASES, "both"], default="both")
    parser.add_argument("--only", type=lambda text: text.split(","), help=", ".join(GROUPS))
    parser.add_argument(
        "--peers", type=lambda text: text.split(","), default=[], help=", ".join(peers.PEERS)
    )
    parser.add_argument("--write", action="store_true", help="put it into docs/performance.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
