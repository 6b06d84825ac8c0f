"""Batches: accept, find, steer. Their lines are jobs; `shared.batch_steps` moves them on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from sqlalchemy import delete
from sqlmodel import Session, col, select

from shared import clock, events, files, idempotency, ids
from shared.batch_progress import Counts, counts, summarise
from shared.clock import database_now
from shared.errors import InvalidRequest, NotFound
from shared.idempotency import Sent
from shared.tables import Batch, File

PREFIX: Final = "batch_"
VALIDATING: Final = "validating"
IN_PROGRESS: Final = "in_progress"
CANCELLING: Final = "cancelling"
FAILED: Final = "failed"
ENDS: Final = frozenset({"completed", FAILED, "expired", "cancelled"})
"""Statuses of a batch that has ended; it is open again when its lines are retried."""
UNITS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
"""Milliseconds that a window may be counted in."""
CHANGEABLE: Final = {
    "priority": "priority",
    "concurrency": "concurrency",
    "metadata": "batch_metadata",
}
"""What can be changed, and its column."""
READ_AT_ONCE: Final = 100
"""Rows of a page that are read at a time."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A validated request, ready to become a batch."""

    account_id: str
    key_id: str | None
    request_id: str
    endpoint: str
    input_file_id: str
    window: str
    """As the caller said it: `24h`."""
    window_ms: int
    priority: int = 0
    concurrency: int | None = None
    webhook: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    output_expires_after: int | None = None
    """Seconds its output and error files are kept; None: as long as its jobs."""
    batch_id: str = field(default_factory=lambda: ids.prefixed(PREFIX))


def create(
    session: Session, new: NewBatch, sent: Sent | None, errors: list[dict[str, Any]] | None
) -> tuple[Batch, bool]:
    """Accept a batch, or find the one that this very request became earlier (True).

    With `errors` of its input it is born failed. Tried again after a commit that went unanswered,
    it is found too, as new. Raises `NotFound` for an input that is not the account's,
    `InvalidRequest` for a file that is no input, or what `idempotency.enter` does.
    """
    if landed := session.get(Batch, new.batch_id):
        return landed, False
    if (earlier := _earlier(session, new, sent)) is not None:
        return earlier, True
    source = _input(session, new)
    now: int = session.execute(select(database_now())).scalar_one()
    batch = Batch(
        id=new.batch_id,
        account_id=new.account_id,
        key_id=new.key_id,
        request_id=new.request_id,
        endpoint=new.endpoint,
        model=source.models[0] if len(source.models) == 1 else None,
        status=VALIDATING,
        input_file_id=source.id,
        fingerprint=sent.fingerprint if sent and sent.by_sdk and sent.key is None else None,
        completion_window=new.window,
        priority=new.priority,
        concurrency=new.concurrency,
        total=source.lines,
        webhook=new.webhook,
        batch_metadata=new.metadata,
        created_at=now,
        expires_at=now + new.window_ms,
        output_expires_after=new.output_expires_after,
    )
    session.add(batch)
    if source.status == files.ERROR:
        said = {"code": "invalid_request", "line": None, "message": source.status_details}
        fail(session, batch, errors or [{**said, "param": None}])
    session.flush()
    return batch, False


def _earlier(session: Session, new: NewBatch, sent: Sent | None) -> Batch | None:
    if sent is None:
        return None
    if sent.key is not None:
        known = idempotency.enter(session, new.account_id, sent, [new.batch_id])
        batch = session.get(Batch, known[0]) if known else None
        if known and batch is None:
            raise NotFound(idempotency.DELETED)
        return batch
    return _repeated(session, new, sent)


def known(session: Session, new: NewBatch, sent: Sent | None) -> Batch | None:
    """The batch that this very request became earlier; None when it is new."""
    if sent is None:
        return None
    if sent.key is None:
        return _repeated(session, new, sent)
    entered = idempotency.stands_for(session, new.account_id, sent)
    return session.get(Batch, entered[0]) if entered else None


def _repeated(session: Session, new: NewBatch, sent: Sent) -> Batch | None:
    """What an SDK's request became when it was sent before."""
    if not sent.retried:
        return None
    alike = select(Batch).where(
        col(Batch.account_id) == new.account_id,
        col(Batch.key_id) == new.key_id,
        col(Batch.fingerprint) == sent.fingerprint,
        col(Batch.created_at) > database_now() - idempotency.RETRIED_WITHIN,
    )
    return session.exec(alike.order_by(col(Batch.id).desc()).limit(1)).first()


def _input(session: Session, new: NewBatch) -> File:
    try:
        source = files.find(session, new.account_id, new.input_file_id)
    except NotFound as error:
        raise NotFound(error.message, param="input_file_id") from None
    if source.purpose != files.BATCH:
        said = f"The file's purpose is {source.purpose!r}; a batch's input has 'batch'."
        raise InvalidRequest(said, param="input_file_id")
    return source


def fail(session: Session, batch: Batch, errors: list[dict[str, Any]]) -> None:
    """End a batch of which no line can run."""
    batch.status, batch.errors, batch.total = FAILED, errors, 0
    batch.ended_at = session.execute(select(database_now())).scalar_one()
    tell(session, batch, summarise(session, batch))


def tell(session: Session, batch: Batch, lines: Counts) -> None:
    """Record the event that a batch has come to its status."""
    data = {
        "id": batch.id,
        "object": "batch",
        "status": batch.status,
        "request_counts": {
            "total": batch.total,
            "completed": lines.completed,
            "failed": lines.failed + lines.cancelled + lines.expired,
        },
        **({"metadata": batch.batch_metadata} if batch.batch_metadata else {}),
    }
    events.record(session, batch.account_id, f"batch.{batch.status}", data, webhook=batch.webhook)


def find(session: Session, account_id: str, batch_id: str) -> Batch:
    """One of the account's batches. Raises `NotFound`."""
    batch = session.get(Batch, batch_id) if ids.is_prefixed(batch_id, PREFIX) else None
    if batch is None or batch.account_id != account_id:
        raise NotFound(f"There is no batch {batch_id[:100]!r}.", param="batch_id")
    return batch


def page(
    session: Session,
    account_id: str,
    *,
    status: str | None = None,
    metadata: Mapping[str, str] | None = None,
    after: str | None = None,
    limit: int = 20,
) -> tuple[list[Batch], bool]:
    """One page of the account's batches, newest first, and whether there are more.

    Raises `InvalidRequest` for a cursor that can be no batch.
    """
    query = select(Batch).where(col(Batch.account_id) == account_id)
    if status is not None:
        query = query.where(col(Batch.status) == status)
    if after is not None:
        if not ids.is_prefixed(after, PREFIX):
            raise InvalidRequest("There is no such batch to go on after.", param="after")
        query = query.where(col(Batch.id) < after)
    wanted = (metadata or {}).items()
    newest = query.order_by(col(Batch.id).desc()).execution_options(yield_per=READ_AT_ONCE)
    with session.exec(newest) as rows:
        # An account has few batches: their metadata needs no index.
        fitting = (row for row in rows if wanted <= (row.batch_metadata or {}).items())
        found = list(islice(fitting, limit + 1))
    return found[:limit], len(found) > limit


def held_still(session: Session, batch_id: str) -> Batch | None:
    """The batch, locked until this transaction ends; None: it is gone."""
    return session.get(Batch, batch_id, with_for_update=True, populate_existing=True)


def _steered(session: Session, account_id: str, batch_id: str) -> Batch:
    find(session, account_id, batch_id)
    batch = held_still(session, batch_id)
    if batch is None:
        raise NotFound(f"There is no batch {batch_id!r} any more.", param="batch_id")
    return batch


def _open(session: Session, account_id: str, batch_id: str) -> Batch:
    batch = _steered(session, account_id, batch_id)
    if batch.ended_at is not None or batch.status == CANCELLING:
        raise InvalidRequest(f"The batch is {batch.status}.", code="batch_ended")
    return batch


def cancel(session: Session, account_id: str, batch_id: str, *, grace_ms: int = 0) -> Batch:
    """Stop a batch; lines that run may go on for `grace_ms`. Raises `NotFound`.

    Idempotent; said again, it may only shorten the grace.
    """
    batch = _steered(session, account_id, batch_id)
    if batch.ended_at is None:
        now: int = session.execute(select(database_now())).scalar_one()
        if batch.status != CANCELLING:
            batch.status, batch.cancelling_at = CANCELLING, now
            batch.paused_at = batch.retry_at = None
        batch.stop_at = min(now + grace_ms, batch.stop_at or now + grace_ms)
        session.flush()
    return batch


def pause(session: Session, account_id: str, batch_id: str) -> Batch:
    """Start no more of its lines. Idempotent. Raises `NotFound`, or `InvalidRequest`: it ended."""
    batch = _open(session, account_id, batch_id)
    if batch.paused_at is None:
        batch.paused_at = clock.now()
        session.flush()
    return batch


def resume(session: Session, account_id: str, batch_id: str) -> Batch:
    """Go on after a pause. Idempotent. Raises `NotFound`, or `InvalidRequest`: it ended."""
    batch = _open(session, account_id, batch_id)
    batch.paused_at = None
    session.flush()
    return batch


def retry(session: Session, account_id: str, batch_id: str) -> Batch:
    """Try the lines of an ended batch anew that did not complete.

    Raises `NotFound`, or `InvalidRequest` while it is open and when there is nothing to retry.
    """
    batch = _steered(session, account_id, batch_id)
    if batch.ended_at is None:
        raise InvalidRequest(f"The batch is {batch.status}: it has to end.", code="batch_not_ended")
    lines = counts(session, [batch])[batch.id]
    if lines.completed == batch.total:
        raise InvalidRequest("There is no line to retry.", code="nothing_to_retry")
    now: int = session.execute(select(database_now())).scalar_one()
    # What its files show is about to change.
    session.execute(delete(File).where(col(File.batch_id) == batch.id))
    batch.output_file_id = batch.error_file_id = batch.paused_at = batch.summary = None
    batch.status = IN_PROGRESS
    # All that ended before is older than this, however quick the caller was.
    batch.retry_at = max(now, batch.ended_at + 1)
    batch.cancelling_at = batch.stop_at = batch.finalizing_at = batch.ended_at = None
    window = batch.completion_window
    batch.expires_at = now + int(window[:-1]) * UNITS[window[-1]]
    session.flush()
    return batch


def change(
    session: Session, account_id: str, batch_id: str, *, changes: Mapping[str, Any]
) -> Batch:
    """Change its `priority`, `concurrency` or `metadata`. Raises `NotFound`."""
    batch = _steered(session, account_id, batch_id)
    for name, value in changes.items():
        setattr(batch, CHANGEABLE[name], value)
    session.flush()
    return batch
