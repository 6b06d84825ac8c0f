"""What must be true of files and of batches with their lines, looked at page by page."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import sqlalchemy
from sqlalchemy import Row, func, or_
from sqlmodel import Session, col, select

from shared import batch_progress
from shared.batches import ENDS, FAILED
from shared.files import BATCH, BATCH_OUTPUT, ERROR, PROCESSED, UPLOADED
from shared.flaws import Flaw, Page
from shared.lifecycle import TERMINAL
from shared.tables import Batch, File, Job

FILES: Final = 100
"""That one read looks at."""
BATCHES: Final = 5
"""That one read looks at; each may have a hundred thousand lines."""
MOST_LINES: Final = 100_000


def files(session: Session, after: str) -> Page:
    """Every file is what its status says, and what a batch made belongs to its account."""
    made_by = select(Batch.account_id).where(col(Batch.id) == col(File.batch_id))
    onward = select(File, made_by.scalar_subquery()).where(col(File.id) > after)
    page = session.exec(onward.order_by(col(File.id)).limit(FILES)).all()
    flaws = [
        Flaw("file_fits", file.id, sentence)
        for file, owner in page
        for sentence in _of_file(file, owner)
    ]
    return Page(len(page), flaws, page[-1][0].id if len(page) == FILES else None)


def _of_file(file: File, owner: str | None) -> Iterator[str]:
    fitting = {
        UPLOADED: file.expires_at is not None and file.bytes == file.lines == 0,
        PROCESSED: file.bytes > 0 and 1 <= file.lines <= MOST_LINES,
        ERROR: bool(file.status_details),
    }
    if not fitting.get(file.status, False):
        yield (
            f"It is {file.status} ({file.status_details}), has {file.bytes} bytes and "
            f"{file.lines} lines, and expires at {file.expires_at}."
        )
    if file.batch_id is None and file.purpose != BATCH:
        yield f"Its purpose is {file.purpose!r}, and no batch made it."
    if file.batch_id is not None and (file.purpose, owner) != (BATCH_OUTPUT, file.account_id):
        yield f"Its purpose is {file.purpose!r}, and its batch belongs to {owner}."


def batches(session: Session, after: str) -> Page:
    """Every batch is what its lines add up to."""
    onward = select(Batch).where(col(Batch.id) > after).order_by(col(Batch.id)).limit(BATCHES)
    page = session.exec(onward).all()
    flaws = [
        Flaw("batch_is_its_lines", batch.id, sentence)
        for batch in page
        for sentence in (
            *_of_batch(batch),
            *_of_lines(batch, _sums(session, batch)),
            *_of_summary(session, batch),
        )
    ]
    return Page(len(page), flaws, page[-1].id if len(page) == BATCHES else None)


def _of_batch(batch: Batch) -> Iterator[str]:
    if (batch.ended_at is not None) != (batch.status in ENDS):
        yield f"It is {batch.status}, and ended_at is {batch.ended_at}."
    if batch.status in ENDS - {FAILED} and batch.read_lines != batch.total:
        yield f"It is {batch.status}, with {batch.read_lines} of {batch.total} lines read."
    if batch.status == FAILED and not batch.errors:
        yield "It is failed, and does not say of what."


def _of_summary(session: Session, batch: Batch) -> Iterator[str]:
    said = batch.summary and batch.summary["counts"]
    lines = asdict(batch_progress.counted(session, [batch])[batch.id])
    if said != (None if batch.ended_at is None else lines):
        yield f"It is {batch.status}, says that its lines are {said}, and they are {lines}."


def _sums(session: Session, batch: Batch) -> Row[Any]:
    numbered = col(Job.result_number).is_not(None)
    unended = or_(col(Job.status).not_in(TERMINAL), col(Job.result_number).is_(None))
    of_it = (
        func.count(col(Job.line)).label("lines"),
        func.count(func.distinct(col(Job.line))).label("places"),
        func.coalesce(func.max(col(Job.line)), 0).label("last"),
        func.count(col(Job.result_number)).label("numbered"),
        func.coalesce(func.max(col(Job.result_number)), 0).label("newest"),
        func.count().filter(col(Job.line).is_not(None), unended).label("unended"),
        func.coalesce(func.sum(col(Job.cost)).filter(numbered), 0).label("cost"),
        func.count().filter(col(Job.account_id) != batch.account_id).label("foreign"),
    )
    return session.execute(sqlalchemy.select(*of_it).where(col(Job.batch_id) == batch.id)).one()


def _of_lines(batch: Batch, sums: Row[Any]) -> Iterator[str]:
    if not sums.lines == sums.places == sums.last == batch.read_lines:
        yield f"{batch.read_lines} lines are read, {sums.lines} are there, the last is {sums.last}."
    if not sums.numbered == sums.newest == batch.results:
        yield f"It has {batch.results} results; {sums.numbered} are numbered, up to {sums.newest}."
    if batch.status in ENDS and sums.unended:
        yield f"It is {batch.status}, and {sums.unended} lines have not ended, or have no number."
    if sums.cost != batch.cost:
        yield f"It cost {batch.cost} nano-credits, its lines {sums.cost}."
    if sums.foreign:
        yield f"{sums.foreign} of its lines belong to another account."
