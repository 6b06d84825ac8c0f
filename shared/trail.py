"""The audit log: who administered what, and when. Entries are only ever added."""

from typing import Any

from sqlalchemy import tuple_
from sqlmodel import Session, col, select

from shared.errors import InvalidRequest
from shared.tables import AuditEntry


def record(
    session: Session, actor: str, action: str, subject: str, details: dict[str, Any] | None = None
) -> AuditEntry:
    """Write down what `actor` does to `subject`, in the transaction that does it."""
    entry = AuditEntry(actor=actor, action=action, subject=subject, details=details or {})
    session.add(entry)
    return entry


def entries(session: Session, *, after: str | None, limit: int) -> tuple[list[AuditEntry], bool]:
    """The newest entries, or those before one; whether there are more.

    Raises `InvalidRequest` for a cursor that names no entry.
    """
    query = select(AuditEntry)
    if after is not None:
        safe = after.isascii() and after.isalnum()
        known = session.get(AuditEntry, after) if safe else None
        if known is None:
            raise InvalidRequest("There is no such entry to go on after.", param="after")
        # Not by the id alone: that of a grant with a reference does not grow with time.
        place = tuple_(col(AuditEntry.created_at), col(AuditEntry.id))
        query = query.where(place < (known.created_at, known.id))
    newest = query.order_by(col(AuditEntry.created_at).desc(), col(AuditEntry.id).desc())
    rows = session.exec(newest.limit(limit + 1)).all()
    return list(rows[:limit]), len(rows) > limit
