"""One run: callers and faults at once, an end, and a judgement."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from sqlmodel import Session

from shared import db, lanes
from tests.faults import forms
from tests.faults.callers import Record
from tests.faults.evidence import collect
from tests.faults.faults import ACTS, kinds_for
from tests.faults.judge import Violation, judge
from tests.faults.machine import Machine, running
from tests.faults.schedule import Strike, plan
from tests.postgres import Postgres

END_WITHIN, MORE_FOR_EACH = 90.0, 0.15
"""Seconds after the last fault by which everything must have ended, and more for each job."""
LOOK_EVERY = 1.0
CONNECTIONS = 2000
"""Callers wait for answers, never for each other."""


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    database: str
    seed: int
    jobs: int
    strikes: Counter[str]
    told: int
    """Callers that were told of a failure or of a new beginning."""
    seconds: float
    violations: list[Violation]

    def count(self, charge: str) -> int:
        """Violations of one kind."""
        return sum(violation.charge == charge for violation in self.violations)


@dataclass
class Progress:
    """How far a run is."""

    records: Sequence[Record]
    strikes: int = 0

    def __str__(self) -> str:
        accepted = sum(len(record.job_ids) for record in self.records)
        ended = sum(record.finished for record in self.records)
        asking = len(self.records)
        return f"{accepted} jobs accepted, {ended} of {asking} callers done, {self.strikes} faults"


def run(
    database_url: str,
    home: Path,
    *,
    seed: int,
    count: int,
    seconds: float,
    server: Postgres | None = None,
    show: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Submit `count` jobs over so many seconds while faults strike, and judge what came of it.

    `server` has the database, if it is PostgreSQL; it is struck as well.
    """
    mixed = list(forms.mixed(seed, count))
    records = [record for _, record in mixed]
    strikes = plan(seed, seconds, kinds_for(database_url))
    began = time.monotonic()
    with running(database_url, home, server) as machine:
        asyncio.run(_storm(machine, mixed, strikes, seed, seconds, show))
        machine.end()
        evidence = collect(machine, records)
    return Result(
        database_url.partition(":")[0].partition("+")[0],
        seed,
        len(evidence.jobs),
        Counter(strike.kind for strike in strikes),
        sum(bool(record.told or record.reading.told or _failed(record)) for record in records),
        time.monotonic() - began,
        judge(evidence),
    )


def _failed(record: Record) -> bool:
    return record.reading.ended not in (None, "completed", "cancelled")


async def _storm(
    machine: Machine,
    mixed: Sequence[tuple[forms.Form, Record]],
    strikes: Sequence[Strike],
    seed: int,
    seconds: float,
    show: Callable[[Progress], None],
) -> None:
    chance = random.Random(f"{seed} moments")
    progress = Progress([record for _, record in mixed])
    headers = {"Authorization": f"Bearer {machine.stack.key}"}
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        supervising = asyncio.create_task(_supervise(machine, progress, show))
        with ThreadPoolExecutor(max(1, len(strikes))) as hands:
            blows = [_strike(machine, strike, hands, progress) for strike in strikes]
            calls = [
                forms.call(form, record, session, machine.urls, chance.uniform(0, seconds * 0.9))
                for form, record in mixed
            ]
            calling = asyncio.gather(*calls)
            await asyncio.gather(*blows)
            with suppress(TimeoutError):  # the records tell who still waits
                async with asyncio.timeout(END_WITHIN + MORE_FOR_EACH * len(mixed)):
                    await calling
                    await _all_ended(machine)
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)


async def _strike(
    machine: Machine, strike: Strike, hands: ThreadPoolExecutor, progress: Progress
) -> None:
    await asyncio.sleep(strike.at)
    progress.strikes += 1
    await asyncio.get_running_loop().run_in_executor(hands, ACTS[strike.kind], machine, strike)


async def _supervise(
    machine: Machine, progress: Progress, show: Callable[[Progress], None]
) -> None:
    while True:
        await asyncio.to_thread(machine.supervise)
        show(progress)
        await asyncio.sleep(LOOK_EVERY)


async def _all_ended(machine: Machine) -> None:
    """Until the jobs that nobody reads have ended as well."""
    engine = db.connect(machine.stack.database_url)

    def unfinished() -> bool:
        with Session(engine) as session:
            return any(lanes.unfinished(session).values())

    try:
        while await asyncio.to_thread(unfinished):
            await asyncio.sleep(LOOK_EVERY)
    finally:
        engine.dispose()
