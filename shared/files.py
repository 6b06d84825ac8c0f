"""Files: their rows. The bytes are in `shared.storage`, under the same id.

A row comes before its object and goes after it, so that every object has a row that leads to it:
wherever a process is killed nothing is orphaned. Until an upload is complete its row is `uploaded`,
is shown to nobody, and expires after a day like any other file that has expired.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, delete, exists, insert, or_, update
from sqlmodel import Session, col, select

from shared import ids
from shared.clock import database_now
from shared.errors import InvalidRequest, NotFound
from shared.tables import Batch, File

PREFIX: Final = "file-"
REPORT: Final = ".report"
"""Ends the name of the object that lists what is wrong with a batch's input."""
BATCH: Final = "batch"
BATCH_OUTPUT: Final = "batch_output"
UPLOADED: Final = "uploaded"
PROCESSED: Final = "processed"
ERROR: Final = "error"
UPLOAD_WITHIN: Final = 24 * 3600 * 1000
"""Milliseconds after which an upload that is not complete is taken for dead."""


def begin(session: Session, account_id: str, filename: str, purpose: str) -> str:
    """The id of a file whose bytes are about to come."""
    file_id = ids.prefixed(PREFIX)
    session.execute(
        insert(File).values(
            id=file_id,
            account_id=account_id,
            filename=filename,
            purpose=purpose,
            status=UPLOADED,
            created_at=database_now(),
            expires_at=database_now() + UPLOAD_WITHIN,
        )
    )
    return file_id


def complete(
    session: Session,
    file_id: str,
    *,
    size: int,
    lines: int,
    problem: str | None,
    kept_ms: int,
    models: Sequence[str] = (),
) -> File:
    """Show an upload whose bytes are in the storage; `problem` is what is wrong with them.

    Raises `NotFound` when it took so long that it was given up.
    """
    under_way = update(File).where(col(File.id) == file_id, col(File.status) == UPLOADED)
    done = under_way.values(
        bytes=size,
        lines=lines,
        models=list(models),
        status=PROCESSED if problem is None else ERROR,
        status_details=problem,
        expires_at=col(File.created_at) + kept_ms,
    )
    if session.exec(done).rowcount == 0:
        raise NotFound("The upload took too long.")
    return session.get_one(File, file_id, populate_existing=True)


def find(session: Session, account_id: str, file_id: str) -> File:
    """The account's file. Raises `NotFound`, also once it has expired."""
    query = select(File).where(col(File.id) == file_id, *_shown_to(account_id))
    found = session.exec(query).one_or_none() if ids.is_prefixed(file_id, PREFIX) else None
    if found is None:
        raise NotFound(f"There is no file {file_id[:100]!r}.", param="file_id")
    return found


def page(
    session: Session,
    account_id: str,
    *,
    purpose: str | None,
    newest_first: bool,
    after: str | None,
    limit: int,
) -> tuple[list[File], bool]:
    """One page of the account's files, and whether there are more.

    Raises `InvalidRequest` for a cursor that names no file.
    """
    query = select(File).where(*_shown_to(account_id))
    if purpose is not None:
        query = query.where(col(File.purpose) == purpose)
    if after is not None:
        if not ids.is_prefixed(after, PREFIX):
            raise InvalidRequest("There is no such file to go on after.", param="after")
        query = query.where(col(File.id) < after if newest_first else col(File.id) > after)
    order = col(File.id).desc() if newest_first else col(File.id)
    rows = session.exec(query.order_by(order).limit(limit + 1)).all()
    return list(rows[:limit]), len(rows) > limit


def due(session: Session, limit: int) -> list[str]:
    """Ids of files that have expired, and that no open batch reads."""
    read = exists().where(col(Batch.input_file_id) == col(File.id), col(Batch.ended_at).is_(None))
    query = select(col(File.id)).where(col(File.expires_at) <= database_now(), ~read)
    return list(session.exec(query.order_by(col(File.expires_at)).limit(limit)))


def forget(session: Session, file_ids: Sequence[str]) -> None:
    """Delete the rows of files whose objects are deleted."""
    session.execute(delete(File).where(col(File.id).in_(file_ids)))


def _shown_to(account_id: str) -> list[ColumnElement[bool]]:
    expires = col(File.expires_at)
    return [
        col(File.account_id) == account_id,
        col(File.status) != UPLOADED,
        or_(expires.is_(None), expires > database_now()),
    ]
