"""What a batch has done so far, and what it does: results, events, and who was told of them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import rendered, sse
from api.deps import AuthorizedCaller, FrontDep
from api.front import Front
from api.progress import LOOK_EVERY, Watch
from api.routes.batches import PATH, shown
from api.routes.webhooks import deliveries_about
from api.wire.batches import ResultsPage, progress_event
from api.wire.headers import NDJSON
from api.wire.openapi import EVENTS, RESULTS, query_of
from api.wire.queries import parse_query, parse_starting_after
from shared import batches
from shared.errors import Unavailable
from shared.tables import Batch

router = APIRouter(prefix=PATH, tags=["batches"])

ENOUGH: Final = 8 * 1024 * 1024
"""Bytes after which an answer has no further page of lines, however many were asked for."""
BLANK: Final = b"\n"
"""What keeps proxies awake between two lines; readers of JSON lines pass over it."""


@router.get("/{batch_id}/results", responses=RESULTS, openapi_extra=query_of(ResultsPage))
async def results(
    batch_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """The lines that have ended, in the order they did, also while others run.

    With `follow` they go on coming until the batch has ended.
    """
    asked = parse_query(ResultsPage, request.query_params.multi_items())
    batch = await front.tx.read(batches.find, caller.account_id, batch_id)
    if asked.follow:
        return sse.EventStream(
            _followed(front, batch, asked),
            settings=front.settings,
            headers={"content-type": NDJSON, "x-incomplete": _yes(batch.ended_at is None)},
            ping=BLANK,
        )
    lines, cursor = await _ended(front, batch, asked)
    incomplete = batch.ended_at is None or cursor < batch.results
    headers = {"x-next-cursor": str(cursor), "x-incomplete": _yes(incomplete)}
    return Response(lines, headers=headers, media_type=NDJSON)


async def _ended(front: Front, batch: Batch, asked: ResultsPage) -> tuple[bytes, int]:
    """As many lines as were asked for, or are enough, and the number to go on after."""
    cursor, found, size = asked.after, list[bytes](), 0
    while len(found) < asked.limit and size < ENOUGH:
        wanted = min(asked.limit - len(found), rendered.PAGE)
        page, cursor = await front.tx.read(
            rendered.results_page,
            *(batch.id,),
            after=cursor,
            limit=wanted,
            statuses=sorted(asked.status),
        )
        found += page
        size += sum(map(len, page))
        if len(page) < wanted:  # there were no more of them when we looked at the batch
            return b"".join(found), max(cursor, batch.results)
    return b"".join(found), cursor


async def _followed(front: Front, batch: Batch, asked: ResultsPage) -> AsyncGenerator[bytes]:
    """The lines after a number as they end. Yields nothing (`b""`) now and then while it waits.

    They break off when this process is about to stop: the client asks for the rest.
    """
    cursor, statuses = asked.after, sorted(asked.status)
    async with front.watches.following(batch.account_id, batch.id) as watch:
        while True:
            seen, over = watch.progress, watch.over
            while cursor < seen.batch.results and not front.draining:
                try:
                    page, cursor = await front.tx.read(
                        rendered.results_page,
                        *(batch.id,),
                        after=cursor,
                        limit=rendered.PAGE,
                        statuses=statuses,
                    )
                except Unavailable:
                    over = False
                    await asyncio.sleep(LOOK_EVERY)
                    break
                if len(page) < rendered.PAGE:
                    cursor = max(cursor, seen.batch.results)
                yield b"".join(page)
            if over or front.draining:
                return
            yield b""
            if watch.progress is seen and not watch.over:
                await watch.changed(_quiet(front))


@router.get("/{batch_id}/events", responses=EVENTS)
async def events(
    batch_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """How it comes along, as server-sent events: `batch.progress` twice a second at most, when
    something has changed, and at last `batch.completed` or how else it ended."""
    batch = await front.tx.read(batches.find, caller.account_id, batch_id)
    seen = parse_starting_after(None, request.headers.get("last-event-id"))
    if batch.ended_at is not None and seen == batch.ended_at:
        return Response(status_code=204)  # an EventSource that reconnects takes this for the end
    return sse.EventStream(_told(front, batch), settings=front.settings, headers={})


@router.get("/{batch_id}/deliveries")
async def list_deliveries(batch_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Who was told of it, also by its own webhook, and what came back; newest first."""
    batch = await front.tx.read(batches.find, caller.account_id, batch_id)
    return await deliveries_about(front, caller.account_id, batch.id)


async def _told(front: Front, batch: Batch) -> AsyncGenerator[bytes]:
    retry, told = sse.RETRY, None
    async with front.watches.following(batch.account_id, batch.id) as watch:
        while not watch.over:
            if watch.progress is not told:
                told = watch.progress
                yield retry + sse.event_frame("batch.progress", progress_event(told))
                retry = b""
            else:
                yield b""
            if front.draining:
                return  # an EventSource comes back by itself
            if watch.progress is told and not watch.over:
                await watch.changed(_quiet(front))
        if watch.progress.batch.ended_at is not None:
            yield retry + await _last_event(front, watch)


async def _last_event(front: Front, watch: Watch) -> bytes:
    """Its number is the moment of the end: a batch that is tried anew ends at another."""
    batch = watch.progress.batch
    try:
        view = await front.tx.read(shown, batch.account_id, batch.id)
    except Unavailable:  # its reader comes back for it
        return b""
    return sse.event_frame(f"batch.{batch.status}", {"batch": view}, batch.ended_at)


def _quiet(front: Front) -> float:
    """Seconds after which a reader that hears nothing may be due for a heartbeat."""
    return min(2.0, front.settings.heartbeat.total_seconds())


def _yes(true: bool) -> str:
    return "true" if true else "false"
