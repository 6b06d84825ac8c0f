"""The native view: submit one job or a thousand, list, look closely, follow, cancel."""

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import parse, relay, sse
from api.accept import accept, submission, told
from api.deps import AdmissionDep, AuthorizedCaller, FrontDep
from api.errors import json_response
from api.following import at_the_end
from api.front import Front
from api.routes.chat import job_headers, replayed
from api.routes.completions import cancelled
from api.routes.webhooks import deliveries_about
from api.waiting import last_entry
from api.wire.headers import parse_cancel_after, parse_sent
from api.wire.jobs import JobSubmit, parse_submission
from api.wire.objects import attempt_object, job_object, list_object
from api.wire.openapi import EVENTS, PLACE, query_of, submission_of
from api.wire.queries import JobFilters, parse_query, parse_starting_after
from shared import clock, ids, jobs, listing
from shared.errors import ServiceError, Unavailable
from shared.jobs import Submission
from shared.tables import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post("", status_code=202, openapi_extra=submission_of(JobSubmit, arrays=True))
async def submit(
    request: Request, front: FrontDep, caller: AuthorizedCaller, admission: AdmissionDep
) -> Response:
    """Submit one chat request, or an array of up to 1,000: all of them or none."""
    body, content_type = await request.body(), request.headers.get("content-type")
    raw, asked = await parse.read(body, lambda: _parsed(body, content_type))
    request_id = request.scope["state"]["request_id"]
    stop_after = parse_cancel_after(request.headers.get("cancel-after"))
    raws = raw if isinstance(raw, list) else [raw]

    def made(number: int) -> Submission:
        job, one = asked[number], raws[number]
        try:
            return submission(
                front, caller, request_id, job, one, background=True, stop_after=stop_after
            )
        except ServiceError as error:
            if isinstance(raw, list) and error.param is not None:
                error.param = f"[{number}].{error.param}"
            raise

    new = await parse.read(body, lambda: [made(number) for number in range(len(asked))])
    rows, again = await accept(front, caller, admission, new, parse_sent(request, raw))
    headers = admission.headers | told(new)
    if isinstance(raw, list):
        views = list_object([job_object(job) for job in rows])
        return replayed(json_response(views, status=202, headers=headers), again)
    standing = None
    with suppress(Unavailable):  # accepted all the same
        standing = await front.standing(rows[0], new=not again)
    where = {"location": f"/v1/jobs/{ids.JOB}{rows[0].id}"}
    view = job_object(rows[0], standing=standing)
    headers = {**job_headers(rows[0]), **headers, **where}
    return replayed(json_response(view, status=202, headers=headers), again)


def _parsed(body: bytes, content_type: str | None) -> tuple[Any, list[JobSubmit]]:
    raw = parse.parse_json(body, content_type=content_type, arrays=True)
    return raw, parse_submission(raw)


@router.get("", openapi_extra=query_of(JobFilters))
async def list_jobs(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Newest first; by `status`, `model`, `batch_id`, `metadata[key]`, `created_after/before`."""
    asked = parse_query(JobFilters, request.query_params.multi_items())
    filters = listing.Filters(
        statuses=sorted(asked.status),
        model=asked.model,
        batch_id=asked.batch_id,
        metadata=asked.metadata,
        created_after=clock.milliseconds(asked.created_after),
        created_before=clock.milliseconds(asked.created_before),
        newest_first=asked.order == "desc",
        after=asked.after,
        limit=asked.limit,
    )
    rows, more = await front.tx.read(listing.page, caller.account_id, filters)
    return json_response(list_object([job_object(job) for job in rows], has_more=more))


@router.get("/{job_id}")
async def retrieve(job_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """One job, by any of its three ids."""
    return await _shown(front, await front.tx.read(jobs.find, caller.account_id, job_id))


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Stop it if it has not ended; what it said until then is kept. Idempotent."""
    return await _shown(front, await cancelled(front, caller.account_id, job_id))


@router.get("/{job_id}/attempts")
async def list_attempts(job_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Every try, oldest first."""
    job = await front.tx.read(jobs.find, caller.account_id, job_id)
    tries = await front.tx.read(jobs.attempts, job.id)
    return json_response(list_object([attempt_object(each) for each in tries]))


@router.get("/{job_id}/deliveries")
async def list_deliveries(job_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Who was told of its end, also by its own webhook, and what came back; newest first."""
    job = await front.tx.read(jobs.find, caller.account_id, job_id)
    return await deliveries_about(front, caller.account_id, ids.COMPLETION + job.id)


@router.get(
    "/{job_id}/events",
    responses=EVENTS,
    openapi_extra=query_of(None, starting_after=PLACE),
)
async def events(
    job_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """The job's life as server-sent events, from the start or after a number, to its end."""
    job = await front.tx.read(jobs.find, caller.account_id, job_id)
    after = parse_starting_after(
        request.query_params.get("starting_after"), request.headers.get("last-event-id")
    )
    if at_the_end(job, after):
        return Response(status_code=204)  # an EventSource that reconnects takes this for the end
    jobs.check_content(job)
    frames = await sse.opened(relay.events(front, job, after=after), 0.0)
    return sse.EventStream(frames, settings=front.settings, headers=job_headers(job))


async def _shown(front: Front, job: Job) -> Response:
    latest = await last_entry(front, job)
    view = job_object(job, standing=await front.standing(job), latest=latest)
    return json_response(view, headers=job_headers(job))
