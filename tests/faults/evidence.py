"""What is left of a run to judge by: rows, the upstream's record, the callers' records, logs."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from sqlmodel import Session, select

from shared import db
from shared.tables import Attempt, Job, JobContent
from tests.fakes.upstream import Call
from tests.faults.callers import Record
from tests.faults.machine import Freeze, Machine
from tests.faults.reading import said

BROKEN = ("_broke", "control_turn_failed", "unhandled")
"""How the log events of what must never happen end."""


@dataclass
class Kept:
    """One job, as the database has it."""

    job: Job
    nonce: str
    """Of what was asked."""
    text: str
    """Of what is stored as its result."""
    attempts: list[Attempt]


@dataclass
class Evidence:
    """Everything the judge is shown."""

    records: Sequence[Record]
    jobs: dict[str, Kept]
    calls: Sequence[Call] = ()
    freezes: Sequence[Freeze] = ()
    deaths: Sequence[str] = ()
    broken: Sequence[str] = field(default_factory=list)
    """Lines of logs that speak of a bug."""
    audit: str = ""
    """What `sluice doctor --audit` found; empty when it found nothing."""


def collect(machine: Machine, records: Sequence[Record]) -> Evidence:
    """Gather it, when nothing runs any more."""
    return Evidence(
        records,
        _rows(machine.stack.database_url),
        machine.stack.upstream.calls,
        machine.freezes,
        machine.deaths,
        list(_broken(sorted(machine.stack.home.glob("*.log")))),
        _audit(machine),
    )


def nonce_of(request: bytes | dict[str, object]) -> str:
    """The word by which a request is known."""
    body = orjson.loads(request) if isinstance(request, bytes) else request
    messages = body["messages"]
    assert isinstance(messages, list)
    return str(messages[-1]["content"]).partition(" ")[0].removeprefix("job-")


def _rows(url: str) -> dict[str, Kept]:
    engine = db.connect(url)
    with Session(engine) as session:
        contents = {each.job_id: each for each in session.exec(select(JobContent))}
        attempts = defaultdict(list)
        for attempt in session.exec(select(Attempt).order_by("job_id", "number")):
            attempts[attempt.job_id].append(attempt)
        jobs = {job.id: _kept(job, contents[job.id], attempts[job.id]) for job in _all(session)}
        session.expunge_all()
    engine.dispose()
    return jobs


def _all(session: Session) -> Iterable[Job]:
    return session.exec(select(Job)).all()


def _kept(job: Job, content: JobContent, attempts: list[Attempt]) -> Kept:
    stored = said(orjson.loads(content.response)) if content.response else ""
    return Kept(job, nonce_of(content.request), stored, attempts)


def _broken(logs: Iterable[Path]) -> Iterator[str]:
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if _speaks_of_a_bug(line):
                yield f"{log.name}: {line[:1500]}"


def _speaks_of_a_bug(line: str) -> bool:
    if not line.startswith("{"):
        return line.startswith("Traceback")
    try:
        event = str(orjson.loads(line).get("event", ""))
    except orjson.JSONDecodeError:  # cut off by a kill
        return False
    return event.endswith(BROKEN) or "Traceback" in event


def _audit(machine: Machine) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "doctor", "--audit"],
        env={**os.environ, **machine.stack.environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return "" if done.returncode == 0 else f"exit {done.returncode}: {done.stdout}{done.stderr}"
