"""Batches for tests, made and moved on by the domain's own steps."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
from sqlmodel import Session, col, select, update

from shared import (
    accounts,
    batch_lines,
    batch_results,
    batch_steps,
    batches,
    clock,
    feeding,
    files,
    leadership,
    leases,
)
from shared.batch_lines import Terms
from shared.batch_steps import Shown, Step
from shared.batches import NewBatch
from shared.catalog import Catalog
from shared.lifecycle import JobStatus
from shared.outcomes import Cancelled, Completed, Failed, Outcome
from shared.tables import Batch, File, Job
from tests.factories import FAULT, HOUR, spoken, worker

ENDPOINT = "/v1/chat/completions"
MODEL = {"upstream": "up", "context_window": 1_000, "max_output_tokens": 10}
CATALOG = Catalog.model_validate({
    "upstreams": {"up": {"dialect": "openai", "base_url": "http://up"}},
    "models": {
        "test": {**MODEL, "free": True},
        "plain": {**MODEL, "free": True, "lacks": ["seed"]},
        "dear": {**MODEL, "input_price": 2, "output_price": 4},
    },
})  # fmt: skip
TERMS = Terms(CATALOG, Decimal(1), max_attempts=3)


def line(number: int, **body: Any) -> bytes:
    """A line of an input, as it is sent."""
    asked = {"model": "test", "messages": [{"role": "user", "content": f"Hi {number}"}], **body}
    told = {"custom_id": f"line {number}", "method": "POST", "url": ENDPOINT, "body": asked}
    return orjson.dumps(told) + b"\n"


def input_file(session: Session, lines: int = 3, problem: str | None = None, **given: Any) -> File:
    """An input of so many lines, complete; its bytes are nowhere."""
    account_id = accounts.ensure(session, given.pop("account", "ours")).id
    file_id = files.begin(session, account_id, "in.jsonl", files.BATCH)
    given = {"size": 9, "kept_ms": HOUR, **given}
    return files.complete(session, file_id, lines=lines, problem=problem, **given)


def new_batch(file: File, **fields: Any) -> NewBatch:
    """A request for a batch of that file."""
    new = NewBatch(
        account_id=file.account_id,
        key_id=None,
        request_id="req_1",
        endpoint=ENDPOINT,
        input_file_id=file.id,
        window="24h",
        window_ms=24 * HOUR,
    )
    return replace(new, **fields)


def accepted(session: Session, lines: int = 3, **fields: Any) -> Batch:
    """A batch of which no line is read."""
    return batches.create(session, new_batch(input_file(session, lines), **fields), None, None)[0]


def begun(
    session: Session, lines: int = 3, body: Mapping[str, Any] | None = None, **fields: Any
) -> Batch:
    """A batch of which every line is read."""
    batch = accepted(session, lines, **fields)
    read(session, batch, lines, **(body or {}))
    return batch


def read(session: Session, batch: Batch, lines: int, **body: Any) -> bool:
    """Add the next lines to a batch."""
    start = batch.read_lines
    numbers = range(start + 1, start + 1 + lines)
    planned = [batch_lines.plan(line(number, **body), number, batch, TERMS) for number in numbers]
    return batch_steps.add(session, batch.id, start, planned)


def line_of(session: Session, batch: Batch, number: int) -> Job:
    """The job of that line, now."""
    place = select(Job).where(col(Job.batch_id) == batch.id, col(Job.line) == number)
    return session.exec(place.execution_options(populate_existing=True)).one()


def let_in(session: Session, batch: Batch, number: int) -> Job:
    """Give a line its turn, and set aside what it may cost."""
    job = line_of(session, batch, number)
    leader, _ = leadership.lead(session, feeding.ROLE, "tests", None)
    assert feeding.let_in(session, leader, [job.id], after_ms=0).hinted == [job.id]
    return line_of(session, batch, number)


def run(session: Session, batch: Batch, number: int, status: JobStatus) -> Job:
    """Let a worker take a line, and come to this status with it."""
    claim = leases.claim(session, let_in(session, batch, number).id, worker(session))
    assert claim is not None
    said = replace(spoken(claim.job), model=claim.job.model)
    outcomes: dict[JobStatus, Outcome] = {
        JobStatus.COMPLETED: Completed(said),
        JobStatus.FAILED: Failed(FAULT, said),
        JobStatus.CANCELLED: Cancelled(said),
    }
    if status in outcomes:
        leases.settle(session, claim.lease, outcomes[status])
    return claim.job


def advance(session: Session, batch: Batch) -> list[Step]:
    """Do everything that is due for a batch until nothing is; the steps that were taken."""
    taken: list[Step] = []
    while todo := [steps for one, steps in batch_steps.due(session, 100) if one.id == batch.id]:
        for step in todo[0]:
            taken.append(step)
            session.refresh(batch)
            take(session, batch, step)
        assert len(taken) < 50, taken
    session.refresh(batch)
    return taken


def take(session: Session, batch: Batch, step: Step) -> object:
    """One step, by what the leader saw of the batch."""
    match step:
        case Step.READ:
            return read(session, batch, min(2, batch.total - batch.read_lines))
        case Step.REPLACE:
            failed = batch_results.to_replace(session, batch, 2)
            anew = {
                job.id: batch_lines.plan_again(job, asked, batch, TERMS) for job, asked in failed
            }
            return batch_steps.replace(session, batch.id, batch.retry_at, anew)
        case Step.STOP:
            return batch_steps.stop(session, batch.id, 2)
        case Step.EXPIRE:
            return batch_steps.expire(session, batch.id, 2)
        case Step.NUMBER:
            return batch_steps.number(session, batch.id, 2)
        case Step.END:
            return batch_steps.end(session, batch.id, batch.results, *measured(session, batch))


def measured(session: Session, batch: Batch) -> tuple[Shown, Shown]:
    """What the output and the error file will show."""
    output, errors = (
        batch_steps.measure(session, batch.id, completed=completed, after=None, limit=1_000)[0]
        for completed in (True, False)
    )
    return output, errors


def late(session: Session, batch: Batch) -> None:
    """Let a batch's time, and that of its lines, be up."""
    moment = clock.now() - 1_000
    session.execute(update(Batch).where(col(Batch.id) == batch.id).values(expires_at=moment))
    session.execute(update(Job).where(col(Job.batch_id) == batch.id).values(expires_at=moment))
    session.expire_all()
