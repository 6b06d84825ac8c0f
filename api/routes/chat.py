"""`POST /v1/chat/completions` in all its forms: held, streamed, in the background."""

from contextlib import nullcontext
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import parse, relay, sse
from api.accept import accept, submission, told
from api.callers import Caller
from api.deps import AdmissionDep, AuthorizedCaller, FrontDep
from api.errors import envelope, json_response
from api.exchange import leaving
from api.following import FROM_START
from api.front import Front
from api.hub import Bell
from api.throttle import Admission
from api.waiting import until_ended
from api.wire.chat import ChatCompletionRequest
from api.wire.headers import parse_cancel_after, parse_sent
from api.wire.objects import completion, completion_path, fault, job_object
from api.wire.openapi import ANSWERS, submission_of
from api.wire.prefer import Prefer, parse_prefer
from shared import answers, ids, jobs
from shared.answers import Seen
from shared.errors import Fault, NotFound, SyncWaitExceeded, Unavailable
from shared.lifecycle import TERMINAL, JobStatus
from shared.prices import shown
from shared.tables import Job

router = APIRouter(tags=["chat"])

EARLY_FAILURE = 1.0
"""Seconds a stream's status waits for the first word, so that a job that fails at once says so."""
RETRY_AFTER = "2"
CLIENT_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Where openai-python and openai-node say after how many seconds they give up."""


@router.post(
    "/v1/chat/completions",
    responses=ANSWERS,
    openapi_extra=submission_of(ChatCompletionRequest),
)
async def create(
    request: Request, front: FrontDep, caller: AuthorizedCaller, admission: AdmissionDep
) -> Response:
    """Ask a model. The job is durable before anything is answered."""
    return await ask(request, front, caller, admission, ChatCompletionRequest)


async def ask(
    request: Request,
    front: Front,
    caller: Caller,
    admission: Admission,
    shape: type[ChatCompletionRequest],
) -> Response:
    """Make a job of a body of this shape and answer in the form it wants: what each dialect does.

    Raises `ServiceError` for whatever keeps it from being accepted.
    """
    body, content_type = await request.body(), request.headers.get("content-type")
    raw, asked = await parse.read(body, lambda: _parsed(body, content_type, shape))
    prefer = parse_prefer(",".join(request.headers.getlist("prefer")))
    background = bool(asked.background) or prefer.respond_async
    request_id = request.scope["state"]["request_id"]
    stop_after = parse_cancel_after(request.headers.get("cancel-after"))
    new = await parse.read(
        body,
        lambda: submission(
            front, caller, request_id, asked, raw, background=background, stop_after=stop_after
        ),
    )
    sent = parse_sent(request, raw)
    waits = asked.stream or not background
    with front.hub.listening(new.job_id) if waits else nullcontext() as bell:
        [job], again = await accept(front, caller, admission, [new], sent)
        if bell is not None:
            bell.early = False
        heard = None if again else bell
        try:
            if asked.stream:
                response = await stream(front, job, after=FROM_START, bell=heard)
            else:
                response = await _held(request, front, job, prefer, background, heard, again)
                await admission.end()  # before the client has its answer, and comes with the next
        except Unavailable as error:  # accepted all the same: nobody should send it once more
            response = _refused(Fault.of(error), job)
    response.headers.update(admission.headers | told([new]))
    return replayed(response, again)


async def _held(
    request: Request,
    front: Front,
    job: Job,
    prefer: Prefer,
    background: bool,
    bell: Bell | None,
    again: bool,
) -> Response:
    """The answer, if it comes while the connection may be held; where to look for it otherwise.

    `bell`: of a job that is new, if it is waited for. `again`: an earlier request submitted it.
    """
    with front.attendance.reading(job, anew=bell is None) as presence:
        seconds = _hold(request, front, prefer, background)
        seen = await until_ended(front, job, seconds, request, bell=bell)
        presence.over = seen.job.status in TERMINAL
        if not presence.over and not background:
            if front.draining:
                return _refused(relay.DRAINING, seen.job)
            return await _held_too_long(request, front, seen.job)
    if presence.over:
        return await answer(front, seen)
    return await accepted(front, seen.job, prefer, new=not (again or prefer.wait))


def _parsed(
    body: bytes, content_type: str | None, shape: type[ChatCompletionRequest]
) -> tuple[Any, ChatCompletionRequest]:
    raw = parse.parse_json(body, content_type=content_type)
    return raw, parse.validate(shape, raw)


def _hold(request: Request, front: Front, prefer: Prefer, background: bool) -> float:
    """Seconds to hold the connection: the least of our limit, the client's timeout and its wish."""
    if background:
        return min(prefer.wait or 0.0, front.settings.hold_limit.total_seconds())
    limits = [front.settings.hold_limit.total_seconds()]
    if prefer.wait is not None:
        limits.append(prefer.wait)
    for name in CLIENT_TIMEOUTS:
        try:
            timeout = float(request.headers.get(name, ""))
        except ValueError:
            continue
        if timeout > 0:
            limits.append(timeout - min(10.0, timeout / 5))
    return min(limits)


def job_headers(job: Job) -> dict[str, str]:
    """The headers every answer about a job carries."""
    return {"x-job-id": ids.JOB + job.id, "location": completion_path(job)}


async def stream(front: Front, job: Job, *, after: int, bell: Bell | None) -> Response:
    """The job's chunks after a number, live to the end; an early failure as a plain error.

    `bell`: of a job that is new; None: it was submitted by an earlier request.
    """
    frames = relay.chunks(front, job, after=after, bell=bell)
    try:
        ready = await sse.opened(frames, EARLY_FAILURE)
    except sse.StreamFailed as failed:
        return _refused(failed.fault, job)
    return sse.EventStream(ready, settings=front.settings, headers=job_headers(job))


def replayed(response: Response, again: bool) -> Response:
    """Say so when a request led to what it had become before."""
    if again:
        response.headers["idempotency-replayed"] = "true"
    return response


async def answer(front: Front, seen: Seen) -> Response:
    """What a held request gets when its job has ended."""
    job = seen.job
    if job.status != JobStatus.COMPLETED:
        return _refused(fault(job.status, {"error": job.error}), job)
    kept = seen.kept or (await front.tx.look(answers.look_all, job.id)).kept
    if kept is None:
        jobs.check_content(job)
        raise NotFound(f"The job {job.id!r} was deleted.")
    used = {"x-model-used": quote(job.served_model or "", safe="/:@")}
    if job.cost is not None and kept.available is not None:
        used |= {"x-credits-cost": shown(job.cost), "x-credits-remaining": shown(kept.available)}
    return json_response(kept.response or b"{}", headers={**job_headers(job), **used})


def _refused(why: Fault, job: Job) -> Response:
    # A job that has run would run, and be paid, once more if an SDK tried again by itself. One that
    # goes on while we stop is found again.
    advice = {"retry-after": "1"} if why == relay.DRAINING else {"x-should-retry": "false"}
    return envelope(why, headers={**job_headers(job), **advice}, job_id=ids.JOB + job.id)


async def accepted(front: Front, job: Job, prefer: Prefer, *, new: bool) -> Response:
    """202: the job is ours now, and here is where to look; `new`: since this moment."""
    headers = {**job_headers(job), "retry-after": RETRY_AFTER}
    if prefer.respond_async:
        headers["preference-applied"] = "respond-async"
    view = job_object(job, standing=await front.standing(job, new=new))
    return json_response(completion(job, None, job_view=view), status=202, headers=headers)


async def _held_too_long(request: Request, front: Front, job: Job) -> Response:
    # Also when the client has left: then nobody reads this, and the job is left to its grace.
    if not leaving(request.scope).done():
        await front.tx(jobs.let_go_on, job.id)
    where = completion_path(job)
    error = SyncWaitExceeded(
        f"Still running after the longest wait; the job goes on. Poll {where}.",
        retry_after=timedelta(seconds=2),
    )
    return _refused(Fault.of(error), job)
