"""OpenAI's batches: make one, look, steer."""

from contextlib import suppress
from decimal import Decimal
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlmodel import Session

from api import orders, progress
from api.callers import Caller
from api.commit import commit
from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.estimates import Estimate, estimate
from api.front import Front
from api.lines import ENDPOINT
from api.orders import Order
from api.progress import Progress
from api.routes.chat import replayed
from api.wire.admin import read_body
from api.wire.batches import (
    BatchChange,
    BatchCreate,
    BatchFilters,
    BatchTerms,
    Grace,
    batch_object,
    dry_run_object,
)
from api.wire.objects import list_object
from api.wire.openapi import batch_of, body_of, query_of
from api.wire.queries import parse_query
from api.wire.webhooks import check_receiver
from shared import batch_progress, batches, standing
from shared.batch_progress import Counts
from shared.batches import NewBatch
from shared.errors import ModelNotFound, QueueFull, Unavailable
from shared.lifecycle import Lane
from shared.sources import Source
from shared.tables import Batch

PATH: Final = "/v1/batches"

router = APIRouter(prefix=PATH, tags=["batches"])


@router.post("", openapi_extra=batch_of(BatchCreate, BatchTerms))
async def create(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Run every line of a file, of `requests`, or of a body of JSON lines.

    What is wrong with a file makes a batch that failed; what is wrong with lines that come with the
    request is refused.
    """
    async with orders.taken(request, front, caller) as order:
        webhook = order.terms.webhook
        if webhook is not None:
            check_receiver(webhook.url, front.settings.allowed, param="webhook.url")
        if order.terms.dry_run:
            return await _dry_run(front, order)
        request_id = request.scope["state"]["request_id"]
        batch, again = await _accepted(front, order, _new(caller, request_id, order))
    shown = Progress(batch, Counts(total=batch.total, queued=batch.total), None, None)
    with suppress(Unavailable):  # accepted all the same
        shown = await front.tx.read(progress.look, caller.account_id, batch.id)
    return replayed(json_response(batch_object(shown)), again)


def _new(caller: Caller, request_id: str, order: Order) -> NewBatch:
    terms, expiry = order.terms, order.terms.output_expires_after
    return NewBatch(
        account_id=caller.account_id,
        key_id=caller.key_id,
        request_id=request_id,
        endpoint=ENDPOINT,
        input_file_id=order.file.id,
        window=terms.completion_window,
        window_ms=terms.window_ms,
        priority=terms.priority,
        concurrency=terms.concurrency,
        webhook=terms.webhook.model_dump(exclude_none=True) if terms.webhook else None,
        metadata=terms.metadata or None,
        output_expires_after=expiry.seconds if expiry else None,
    )


async def _accepted(front: Front, order: Order, new: NewBatch) -> tuple[Batch, bool]:
    """Commit the batch, or find the one that this request became earlier (True)."""
    lines = 0 if order.errors else order.file.lines

    def create(session: Session) -> tuple[Batch, bool]:
        return batches.create(session, new, order.sent, order.errors)

    try:
        front.backlog.check(lines)
        first = front.tx.by(new.account_id, create)
        batch, again = await commit(front, new.account_id, first, again=create)
    except QueueFull:
        # A batch that is there already takes no room.
        known = await front.tx.read(batches.known, new, order.sent)
        if known is None:
            await order.drop(front)
            raise
        batch, again = known, True
    if again:
        with suppress(Unavailable):  # then it expires
            await order.drop(front)
    else:
        front.backlog.lines_came(lines)
        front.metrics.accepted_of(Lane.BATCH.value).inc(lines)
    return batch, again


async def _dry_run(front: Front, order: Order) -> Response:
    found, eta = Estimate(), None
    if not order.errors:
        content = await front.storage.open(order.file.id)
        found = await estimate(content, front.catalog, Decimal(str(front.settings.batch_price)))
        eta = await _eta(front, order)
    await order.drop(front)
    return json_response(dry_run_object(order.file, order.errors, found, eta))


async def _eta(front: Front, order: Order) -> tuple[float, float] | None:
    """When it would be done; None where the lane's speed says nothing of it."""
    for name in order.file.models:
        with suppress(ModelNotFound):  # such lines fail at once
            if front.catalog.find(name).running is not None:
                return None
    if order.terms.concurrency is not None:
        return None
    batch = Source(
        order.file.account_id,
        order.file.id,  # the name of no batch
        "",
        order.file.lines,
        priority=order.terms.priority,
        expires_in=order.terms.window_ms,
    )
    return await front.tx.read(standing.whole, batch)


@router.get("", openapi_extra=query_of(BatchFilters))
async def list_batches(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Newest first; by `status` and `metadata[key]`. Without `error_summary`."""
    asked = parse_query(BatchFilters, request.query_params.multi_items())
    rows, more = await front.tx.read(_page, caller.account_id, asked)
    return json_response(list_object([batch_object(row) for row in rows], has_more=more))


def _page(session: Session, account_id: str, asked: BatchFilters) -> tuple[list[Progress], bool]:
    rows, more = batches.page(
        session,
        account_id,
        status=asked.status,
        metadata=asked.metadata,
        after=asked.after,
        limit=asked.limit,
    )
    return progress.of(session, rows), more


@router.get("/{batch_id}")
async def retrieve(batch_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """One batch: how far it is, why it waits, what its lines failed of, when it may be done."""
    return await _shown(front, caller.account_id, batch_id)


@router.patch("/{batch_id}", openapi_extra=body_of(BatchChange))
async def change(
    batch_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Change its priority, its concurrency or its metadata, also while it runs."""
    asked = await read_body(BatchChange, request)
    await front.tx(batches.change, caller.account_id, batch_id, changes=asked.changes)
    return await _shown(front, caller.account_id, batch_id)


@router.post("/{batch_id}/cancel", openapi_extra=query_of(Grace))
async def cancel(
    batch_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Stop it: what waits at once, what runs after `grace` seconds; results stay. Idempotent."""
    grace = parse_query(Grace, request.query_params.multi_items()).grace
    await front.tx(batches.cancel, caller.account_id, batch_id, grace_ms=grace * 1000)
    return await _shown(front, caller.account_id, batch_id)


@router.post("/{batch_id}/pause")
async def pause(batch_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Start no more of its lines until it is resumed; its window goes on. Idempotent."""
    await front.tx(batches.pause, caller.account_id, batch_id)
    return await _shown(front, caller.account_id, batch_id)


@router.post("/{batch_id}/resume")
async def resume(batch_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Go on after a pause. Idempotent."""
    await front.tx(batches.resume, caller.account_id, batch_id)
    return await _shown(front, caller.account_id, batch_id)


@router.post("/{batch_id}/retry")
async def retry(batch_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Try what did not complete anew, in a window as long as the first; the rest stays."""
    again = await front.tx.read(_to_retry, caller.account_id, batch_id)
    front.backlog.check(again)
    await front.tx(batches.retry, caller.account_id, batch_id)
    front.backlog.lines_came(again)
    return await _shown(front, caller.account_id, batch_id)


def _to_retry(session: Session, account_id: str, batch_id: str) -> int:
    """How many lines a retry would put back into the queue; none while the batch is open."""
    batch = batches.find(session, account_id, batch_id)
    if batch.ended_at is None:
        return 0
    return batch.total - batch_progress.counts(session, [batch])[batch.id].completed


async def _shown(front: Front, account_id: str, batch_id: str) -> Response:
    return json_response(await front.tx.read(shown, account_id, batch_id))


def shown(session: Session, account_id: str, batch_id: str) -> dict[str, Any]:
    """The object of one batch, with all there is to say. Raises `NotFound`."""
    found = progress.look(session, account_id, batch_id)
    return batch_object(found, error_summary=batch_progress.error_summary(session, found.batch))
