"""What looking costs when the database has a thousand jobs, and when it has a million."""

import asyncio
from typing import Any, Final

from sqlalchemy import Engine, func, insert, inspect, select, text
from sqlmodel import Session

from bench import load, watch
from bench.figures import Figure, at, ms
from bench.load import Load
from bench.service import Service
from shared import accounts, clock, db, ids
from shared.lifecycle import JobStatus
from shared.tables import Job, JobContent

CHUNK: Final = 10_000
LOOKS: Final = 400
SIZES: Final = (1_000, 1_000_000)
ANSWER: Final = b'{"id":"x","object":"chat.completion","choices":[]}'


def figures(service: Service, jobs: int) -> list[Figure]:
    """Fill the table up to so many jobs, then look at one by its id, and at the newest of all."""
    engine = db.connect(service.stack.database_url)
    some = _fill(engine, jobs)
    size = _size(engine)
    engine.dispose()
    looks = {"by its id": f"/v1/jobs/{ids.JOB}{some}", "in a list of 20": "/v1/jobs?limit=20"}
    return [_look(service, how, path, jobs, size) for how, path in looks.items()]


def _look(service: Service, how: str, path: str, jobs: int, size: str) -> Figure:
    wanted = Load(service.url, None, path=path, key=service.key, connections=4, requests=LOOKS)
    with watch.spending(service.pids) as spent:
        seen = asyncio.run(load.run(wanted))
    assert not seen.errors, seen.errors
    return Figure(
        f"A job {how}, of {jobs:,}",
        "as with 1,000",
        f"p50 {ms(at(seen.lasted, 0.5))}",
        f"{ms(spent[0].total / seen.answers)} of CPU; {size}",
    )


def _fill(engine: Engine, jobs: int) -> str:
    """Add what is missing, all of it completed; the id of one."""
    with Session(engine) as session, session.begin():
        account_id = accounts.ensure(session, "ours").id
        there = session.execute(select(func.count()).select_from(Job)).scalar_one()
    some = ""
    while there < jobs:
        rows = [_row(account_id) for _ in range(min(CHUNK, jobs - there))]
        some = rows[0]["id"]
        with engine.begin() as connection:
            connection.execute(insert(Job), rows)
            contents = [{"job_id": row["id"], "request": b"{}", "response": ANSWER} for row in rows]
            connection.execute(insert(JobContent), contents)
        there += len(rows)
    return some


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
    return {column.key: getattr(job, column.key) for column in inspect(Job).column_attrs}


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
