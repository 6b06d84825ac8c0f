"""One try at a job: claim, stream, settle. The heart of a worker."""

import asyncio
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import structlog
from redis.exceptions import RedisError

from shared import clock, endings, ids, leases, prices, streams
from shared.chat import Transcript
from shared.errors import (
    Fault,
    InternalError,
    ModelUnavailable,
    ServiceError,
    Unavailable,
    UpstreamTimeout,
    WorkerLost,
)
from shared.leases import Claim
from shared.lifecycle import TERMINAL
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Said
from shared.tables import Job
from workers import retry
from workers.bench import Bench
from workers.patience import insist
from workers.running import Running
from workers.upstreams.protocol import Delta

log = structlog.get_logger()

UNREAD_EVERY = 1.0
"""Seconds between two appends of a job that nobody asked to stream."""
CLOSE_WITHIN = 10.0
"""Seconds to get the end into the log; after that readers learn it from the row."""
WITHOUT_REDIS = timedelta(seconds=5)
"""How long a job waits whose log could not be opened, so that it does not come and go in a loop."""


async def run(bench: Bench, job_id: str) -> None:
    """Try a job once. Quiet when it is held by another worker, cancelled or over."""
    if job_id in bench.hands:
        return
    worker_id = bench.heartbeat.worker_id
    if worker_id is None or not bench.heartbeat.held or bench.draining:
        with suppress(Unavailable):  # then the hint grows old
            await bench.tx(leases.forget_hints, [job_id])  # the sweep sends another
        return
    with bench.hands.holding(job_id):
        claim = await _claim(bench, job_id, worker_id)
        if claim is not None:
            await _attempt(bench, claim)


async def _claim(bench: Bench, job_id: str, worker_id: str) -> Claim | None:
    """Take the job. What is claimed but not returned is handed back: by a beat, or by our leave."""

    def ours() -> bool:
        return bench.heartbeat.held and bench.heartbeat.worker_id == worker_id

    claim = await insist(
        lambda: bench.tx(leases.claim, job_id, worker_id),
        worth_it=lambda: ours() and not bench.draining,
    )
    return claim if ours() else None


async def _attempt(bench: Bench, claim: Claim) -> None:
    running = bench.hands.running[claim.job.id] = Running(claim)
    structlog.contextvars.bind_contextvars(
        request_id=claim.job.request_id, job_id=claim.job.id, attempt=claim.lease.attempt
    )
    outcome = await _outcome(bench, running)
    job = None if outcome is None else await _settle(bench, running, outcome)
    await _tell(bench, running, job)


async def _outcome(bench: Bench, running: Running) -> Outcome | None:
    """How the attempt ends; None when it was fenced and has nothing more to say."""
    running.task = asyncio.create_task(_stream(bench, running))
    if bench.draining:
        running.stop("handed_back")
    try:
        await asyncio.wait({running.task})
    except asyncio.CancelledError:  # Celery's hard limit, or the end of the process
        running.stop("handed_back")
        await asyncio.wait({running.task})
    try:
        return _stopped(running) if running.task.cancelled() else _ended(running)
    except Exception as error:
        return _broke(error)


def _stopped(running: Running) -> Outcome | None:
    """What it means that the stream was stopped."""
    said = _said(running)
    match running.why:
        case "cancelled":
            return Cancelled(said)
        case "handed_back" if running.transcript.spoke and _read_live(running.claim.job):
            # No other attempt could go on from here; so its reader need not wait for one.
            return Failed(Fault.of(WorkerLost("The worker had to stop in mid-answer.")), said)
        case "handed_back":
            return HandedBack(said)
        case _:
            return None


def _ended(running: Running) -> Outcome:
    """What the stream's end means: its own outcome, or a decision about its failure."""
    assert running.task is not None
    error = running.task.exception()
    if error is None:
        return running.task.result()
    if isinstance(error, TimeoutError):
        error = UpstreamTimeout("The attempt took longer than it may in all.")
    if not isinstance(error, ServiceError):
        return replace(_broke(error), said=_said(running))
    claim, job = running.claim, running.claim.job
    decided = retry.after_failure(
        error,
        tries=claim.tries,
        max_attempts=job.max_attempts,
        spoke=running.transcript.spoke,
        read_live=_read_live(job),
    )
    log.info("attempt_failed", code=error.code, decision=type(decided).__name__.lower())
    return replace(decided, said=_said(running))


def _broke(error: BaseException) -> Failed:
    """A bug of ours: it would be the same the next time."""
    log.error("attempt_broke", exc_info=error)
    return Failed(Fault.of(InternalError("Something went wrong on our side; it has been logged.")))


def _read_live(job: Job) -> bool:
    """Whether a reader may have seen text that cannot be unsaid."""
    return job.stream and not job.background


async def _stream(bench: Bench, running: Running) -> Outcome:
    """Call the upstream and pass on what it says, to the end. Raises `ServiceError`."""
    job = running.claim.job
    request = orjson.loads(running.claim.request)
    if job.cancel_requested_at is not None:
        return Cancelled()
    every = 0.0 if job.stream else UNREAD_EVERY
    try:
        if job.attempt > 1 and _read_live(job) and (said := await _said_before(bench, running)):
            lost = WorkerLost("The worker was lost after it had begun to answer.")
            return Failed(Fault.of(lost), said)
        running.log = await bench.publisher.open(job.id, job.attempt, every=every)
    except (RedisError, OSError) as error:
        log.warning("redis_away", error=str(error))
        return HandedBack(after=WITHOUT_REDIS)
    if running.log is None:  # the row was put back to an older attempt: catch up with the log
        return HandedBack()
    running.log.on_fenced = partial(running.stop, "fenced")
    model = running.model = bench.catalog.find(job.model)
    upstream = bench.upstreams.get(model.upstream)
    if upstream is None:
        raise ModelUnavailable(f"This worker has no key for the upstream of {job.model!r}.")
    async with (
        asyncio.timeout(bench.settings.attempt_timeout.total_seconds()),
        aclosing(
            upstream.stream(
                request,
                model=model.upstream_model,
                max_output_tokens=model.max_output_tokens,
            )
        ) as batches,
    ):
        async for batch in batches:
            _take(running, batch)
            await bench.publisher.room()
    return Completed(_said(running))


async def _said_before(bench: Bench, running: Running) -> Said | None:
    """What a reader has seen of the attempt before this one; None when that had not spoken."""
    entries = streams.newest(await streams.read(bench.redis, running.claim.job.id))
    logged = [entry for entry in entries if entry.kind == streams.DELTAS]
    lines = [line for entry in logged for line in entry.deltas]
    heard = Transcript()
    for chunk in map(orjson.loads, lines):
        heard.add(chunk.get("choices") or [], chunk)
    if not heard.spoke:
        return None
    running.transcript = heard
    return _kept(running, lines, logged[0].first_seq)


def _take(running: Running, batch: list[Delta]) -> None:
    """Write what was said into the transcript and the log."""
    transcript, lines = running.transcript, []
    for delta in batch:
        if delta.usage is not None:
            running.usage = delta.usage
        transcript.add(delta.choices, delta.extra)
        if delta.raw:
            lines.append(delta.raw)
    if running.first_delta_at is None and transcript.spoke:
        running.first_delta_at = clock.now()
    if lines and running.log is not None:
        running.log.append(lines, transcript.characters)


def _said(running: Running) -> Said:
    """What the model said in this attempt, as it is kept."""
    job_log = running.log
    return Said() if job_log is None else _kept(running, job_log.lines, job_log.first_seq)


def _kept(running: Running, lines: list[bytes], first_seq: int) -> Said:
    job, model = running.claim.job, running.model
    response = running.transcript.completion(
        id=ids.COMPLETION + job.id,
        created=clock.seconds(job.created_at) or 0,
        model=job.model,
        usage=running.usage,
    )
    usage = _usage(running, response)
    if usage is not running.usage:
        response["usage"] = usage
    return Said(
        response=orjson.dumps(response),
        log=b"\n".join(lines),
        first_seq=first_seq,
        deltas=len(lines),
        characters=running.transcript.characters,
        usage=usage,
        usage_estimated=usage is not running.usage,
        first_delta_at=running.first_delta_at,
        model=model.name if model else None,
        provider=model.upstream if model else None,
        served_model=model.upstream_model if model else None,
    )


def _usage(running: Running, response: dict[str, Any]) -> dict[str, Any] | None:
    """What was used: by the upstream's count, or by ours of what it has not counted to the end."""
    counted = running.usage
    if running.claim.job.held is None or (counted is not None and running.why is None):
        return counted
    counted = counted or {}
    request = orjson.loads(running.claim.request)
    prompt = counted.get("prompt_tokens") or prices.prompt_tokens(request)
    said = max(counted.get("completion_tokens") or 0, prices.completion_tokens(response))
    totals = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    return {**counted, **totals}


async def _settle(bench: Bench, running: Running, outcome: Outcome) -> Job | None:
    """Write the end down, however long the database is away; the job, None when it was lost.

    The lease need not be held any more: the row knows best whether the attempt still counts.
    """
    lease, broke, payer = running.claim.lease, False, running.claim.job.account_id
    while True:
        try:
            job = await insist(
                partial(bench.tx.by, payer, leases.settle, lease, outcome),
                worth_it=lambda: True,
            )
        except asyncio.CancelledError:
            if bench.draining:
                raise  # the process is about to end, and hands back what it holds
        except Exception as error:
            if broke:
                raise
            broke, outcome = True, _broke(error)
        else:
            if job is None:
                log.warning("late")
            else:
                log.info("attempt_ended", outcome=type(outcome).__name__.lower(), status=job.status)
            return job


async def _tell(bench: Bench, running: Running, job: Job | None) -> None:
    """After the commit: end the log, or leave it to the next attempt."""
    if job is None or job.status not in TERMINAL:
        if running.log is not None:
            running.log.drop()
    elif running.log is None:
        await endings.announce(bench.tx, bench.redis, job)
    else:
        end = streams.end_payload(job.status, error=job.error, usage=job.usage)
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await running.log.close(end)
        except TimeoutError:
            running.log.drop()
