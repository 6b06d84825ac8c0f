"""What grows with what there is: jobs in the table, jobs that wait, workers that are attached."""

import asyncio
import time
from typing import Any, Final

from sqlalchemy import Engine, func, insert, inspect, select, text
from sqlmodel import Session

from bench import load, watch
from bench.answers import ONCE, SLOWEST, asked, by_process, wrong
from bench.figures import Figure, at, ms
from bench.load import Load
from bench.service import Service
from bench.throughput import ARRAY, unfinished
from shared import accounts, clock, db, ids
from shared.lifecycle import JobStatus
from shared.tables import Job, JobContent

CHUNK: Final = 10_000
LOOKS: Final = 400
WAIT_FOR: Final = 5.0
TABLE: Final = (1_000, 10_000, 100_000, 1_000_000)
QUEUE: Final = (100, 1_000, 10_000, 100_000)
WORKERS: Final = (1, 10, 100)
ANSWER: Final = b'{"id":"x","object":"chat.completion","choices":[]}'


def table(service: Service, jobs: int) -> list[Figure]:
    """Fill the table up to so many jobs, then look at one by its id, and at the newest of all."""
    service.stack.audited = False  # of what comes now, nothing ever ran
    engine = db.connect(service.stack.database_url)
    some = _fill(engine, jobs)
    size = _size(engine)
    engine.dispose()
    looks = {"by its id": f"/v1/jobs/{ids.JOB}{some}", "in a list of 20": "/v1/jobs?limit=20"}
    return [_look(service, how, path, jobs, size) for how, path in looks.items()]


def _look(service: Service, how: str, path: str, jobs: int, size: str) -> Figure:
    with watch.spending(service.pids) as spent:
        seen = asyncio.run(load.run(_to(service, None, path, requests=LOOKS)))
    assert not seen.errors, seen.errors
    return Figure(
        f"A job {how}, of {jobs:,}",
        "as with 1,000",
        f"p50 {ms(at(seen.lasted, 0.5))}",
        f"{ms(spent[0].total / seen.answers)} of CPU; {size}",
    )


def queued(service: Service, jobs: int) -> Figure:
    """What one more costs when so many wait, and what waiting costs; one job runs all the while."""
    one = asked(SLOWEST, stream=False)
    arrays = (jobs - unfinished(service)) // ARRAY
    if arrays > 0:
        body = [one] * ARRAY
        asyncio.run(load.run(_to(service, body, "/v1/jobs", requests=arrays, status=202)))
    background = _to(service, one | {"background": True}, requests=LOOKS, status=202)
    with watch.spending(service.pids) as accepting:
        seen = asyncio.run(load.run(background))
    with watch.spending(service.pids) as waiting:
        time.sleep(WAIT_FOR)
    return Figure(
        f"An accept with {jobs:,} jobs waiting",
        "",
        f"{ms(accepting[0].total / seen.answers)} of CPU",
        f"and a second of waiting takes {by_process(waiting[0], WAIT_FOR)}",
        wrong(seen.errors),
    )


def attached(service: Service, workers: int) -> Figure:
    """What workers cost that have nothing to do, and what a held completion takes then."""
    while service.workers < workers:
        service.add_worker()
    with watch.spending(service.pids) as idle:
        time.sleep(WAIT_FOR)
    with watch.spending(service.pids) as busy:
        seen = asyncio.run(load.run(_to(service, asked(ONCE, stream=False), requests=LOOKS)))
    return Figure(
        f"{workers} idle workers",
        "",
        f"{ms(idle[0].total / WAIT_FOR / workers)} of CPU a second each",
        f"{idle[0].memory['worker 1'] >> 20} MiB each; a held completion "
        f"{ms(busy[0].total / seen.answers)}, p50 {ms(at(seen.lasted, 0.5))}",
        wrong(seen.errors),
    )


def _to(service: Service, body: Any, path: str = "/v1/chat/completions", **more: Any) -> Load:
    return Load(service.url, body, path=path, key=service.key, connections=4, **more)


def _fill(engine: Engine, jobs: int) -> str:
    """Add what is missing, all of it completed; the id of one."""
    with Session(engine) as session, session.begin():
        account_id = accounts.ensure(session, "ours").id
        there = session.execute(select(func.count()).select_from(Job)).scalar_one()
    row, kept, new = _row(account_id), {"request": b"{}", "response": ANSWER}, ""
    for start in range(there, jobs, CHUNK):
        made = [ids.new_id() for _ in range(min(CHUNK, jobs - start))]
        with engine.begin() as connection:
            connection.execute(insert(Job), [{**row, "id": new} for new in made])
            connection.execute(insert(JobContent), [{**kept, "job_id": new} for new in made])
        new = made[0]
    return new


def _row(account_id: str) -> dict[str, Any]:
    now = clock.now()
    job = Job(
        account_id=account_id,
        request_id="req",
        model="t32",
        background=True,
        status=JobStatus.COMPLETED.value,
        worker_id="wkr_1",
        attempt=1,
        started_at=now,
        completed_at=now,
    )
    fields = {column.key: getattr(job, column.key) for column in inspect(Job).column_attrs}
    return {name: value for name, value in fields.items() if value is not None}


def _size(engine: Engine) -> str:
    """How large the tables and their indexes are."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            table, index = connection.execute(
                text("SELECT pg_table_size('jobs'), pg_indexes_size('jobs')")
            ).one()
            return f"jobs {table >> 20} MiB, indexes {index >> 20} MiB"
        pages, size = (
            connection.execute(text(f"PRAGMA {what}")).scalar_one()
            for what in ("page_count", "page_size")
        )
        return f"the file {pages * size >> 20} MiB"
