"""OpenAI's stored completions: get one, replay it, list, label, cancel, delete."""

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlmodel import Session

from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.following import at_the_end
from api.front import Front
from api.parse import parse_json, validate
from api.partial import partial_response
from api.routes.chat import job_headers, stream
from api.waiting import last_entry, until_ended
from api.wire.chat import MetadataUpdate
from api.wire.objects import completion, job_object, list_object
from api.wire.openapi import FLAG, PLACE, REPLAYS, body_of, query_of
from api.wire.prefer import parse_prefer
from api.wire.queries import (
    CompletionFilters,
    MessageFilters,
    parse_flag,
    parse_query,
    parse_starting_after,
)
from shared import endings, ids, jobs, listing
from shared.errors import InvalidRequest
from shared.lifecycle import TERMINAL, JobStatus
from shared.tables import Job

router = APIRouter(prefix="/v1/chat/completions", tags=["stored completions"])

LONGEST_POLL = 60.0
"""Seconds `Prefer: wait` may hold a poll."""
DELETE_WITHIN = 5.0
"""Seconds to wait for a running job to stop before it is deleted."""


@router.get("", openapi_extra=query_of(CompletionFilters))
async def list_completions(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Completed ones, oldest first, filtered by `model`, `metadata[key]=value` and `status`."""
    asked = parse_query(CompletionFilters, request.query_params.multi_items())
    filters = listing.Filters(
        statuses=sorted(asked.status) or [JobStatus.COMPLETED],
        model=asked.model,
        metadata=asked.metadata,
        with_content=True,
        newest_first=asked.order == "desc",
        after=asked.after,
        limit=asked.limit,
    )
    rows, more = await front.tx.read(_page, caller.account_id, filters)
    shown = [completion(job, response, job_view=job_object(job)) for job, response in rows]
    return json_response(list_object(shown, has_more=more))


def _page(
    session: Session, account_id: str, filters: listing.Filters
) -> tuple[list[tuple[Job, bytes | None]], bool]:
    rows, more = listing.page(session, account_id, filters)
    kept = jobs.responses(session, [job.id for job in rows])
    return [(job, kept[job.id]) for job in rows if job.id in kept], more


@router.get(
    "/{completion_id}",
    responses=REPLAYS,
    openapi_extra=query_of(None, stream=FLAG, starting_after=PLACE, partial=FLAG),
)
async def retrieve(
    completion_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """One, in whatever state; `Prefer: wait=n` holds until it ends; `stream=true` replays it."""
    query = request.query_params
    job = await front.tx.read(jobs.find, caller.account_id, completion_id)
    if parse_flag(query.get("stream"), "stream"):
        return await _replay(request, front, job)
    wait = parse_prefer(",".join(request.headers.getlist("prefer"))).wait
    with front.attendance.reading(job, anew=True) as presence:
        job, _ = await until_ended(front, job, min(wait or 0.0, LONGEST_POLL), request)
        presence.over = job.status in TERMINAL
    return await shown(front, job, partial=parse_flag(query.get("partial"), "partial"))


async def _replay(request: Request, front: Front, job: Job) -> Response:
    after = parse_starting_after(
        request.query_params.get("starting_after"), request.headers.get("last-event-id")
    )
    if at_the_end(job, after):
        return Response(status_code=204)  # a browser's EventSource takes this for the end
    return await stream(front, job, after=after, bell=None)


async def shown(front: Front, job: Job, *, partial: bool = False) -> Response:
    """The OpenAI view of a job as it is now."""
    response = (await front.tx.read(jobs.content, job.id)).response
    if partial and job.status == JobStatus.IN_PROGRESS:
        response = await partial_response(front, job)
    latest = await last_entry(front, job)
    view = job_object(job, standing=await front.standing(job), latest=latest)
    body = completion(job, response, job_view=view, partial=partial)
    return json_response(body, headers=job_headers(job))


@router.post("/{completion_id}", openapi_extra=body_of(MetadataUpdate))
async def update_metadata(
    completion_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Replace the metadata."""
    raw = parse_json(await request.body(), content_type=request.headers.get("content-type"))
    metadata = validate(MetadataUpdate, raw).metadata
    return await shown(
        front, await front.tx(jobs.set_metadata, caller.account_id, completion_id, metadata or None)
    )


@router.post("/{completion_id}/cancel")
async def cancel(completion_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Stop it if it has not ended; what it said until then is kept. Idempotent."""
    return await shown(front, await cancelled(front, caller.account_id, completion_id))


async def cancelled(front: Front, account_id: str, job_id: str) -> Job:
    """Stop a job, and tell its worker or its readers."""
    job = await front.tx.by(account_id, jobs.cancel, account_id, job_id)
    if job.status != JobStatus.COMPLETED:
        await endings.announce(front.tx, front.redis, job)
    return job


@router.delete("/{completion_id}")
async def delete(
    completion_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Delete it with all that was asked and said; one that runs is cancelled first."""
    jobs.check_single(await front.tx.read(jobs.find, caller.account_id, completion_id))
    job = await cancelled(front, caller.account_id, completion_id)
    await until_ended(front, job, DELETE_WITHIN, request)
    job = await front.tx(jobs.remove, caller.account_id, completion_id)
    await front.forget(job)
    deleted = {"id": ids.COMPLETION + job.id, "object": "chat.completion.deleted", "deleted": True}
    return json_response(deleted)


@router.get("/{completion_id}/messages", openapi_extra=query_of(MessageFilters))
async def messages(
    completion_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """The messages that were sent, in pages; each has an id."""
    asked = parse_query(MessageFilters, request.query_params.multi_items())
    job = await front.tx.read(jobs.find, caller.account_id, completion_id)
    sent = orjson.loads((await front.tx.read(jobs.content, job.id)).request)["messages"]
    numbered = [
        {"content": None, **message, "id": f"{ids.COMPLETION}{job.id}-{number}"}
        for number, message in enumerate(sent)
    ]
    if asked.order == "desc":
        numbered.reverse()
    seen = [message["id"] for message in numbered]
    if asked.after is not None and asked.after not in seen:
        raise InvalidRequest("There is no such message to go on after.", param="after")
    start = 0 if asked.after is None else seen.index(asked.after) + 1
    page = numbered[start : start + asked.limit]
    return json_response(list_object(page, has_more=start + asked.limit < len(numbered)))
