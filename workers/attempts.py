"""A try at a job: claim, stream, settle, and at once the next model if it falls back."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import structlog
from redis.exceptions import RedisError

from shared import background, completing, endings, features, jobs, leases, prices, streams
from shared.catalog import Model
from shared.db import Transactions
from shared.errors import (
    Fault,
    InternalError,
    ModelUnavailable,
    ServiceError,
    Unavailable,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    WorkerLost,
)
from shared.leases import Claim
from shared.lifecycle import TERMINAL, JobStatus
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Retry, Said
from shared.tables import Job
from workers import retry, targets
from workers.bench import Bench
from workers.patience import insist
from workers.running import Running
from workers.upstreams.protocol import Upstream

log = structlog.get_logger()

UNREAD_EVERY = 1.0
"""Seconds between two appends of a job that nobody asked to stream."""
WITHOUT_REDIS = timedelta(seconds=5)
"""How long a job waits whose log could not be opened, so that it does not come and go in a loop."""
TOLD = 64 * 1024
"""Bytes of an answer that travel with word of its end; who waits for a longer one reads the row."""
FALL_BACK_WITHIN = 60.0
"""Seconds after the hint in which another model may begin: a task has time for one long try."""


async def run(
    bench: Bench,
    job_id: str,
    *,
    since: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Try a job once at each model that it falls back to, by a `clock` of seconds. Quiet when
    another worker holds it, or it is cancelled or over. `since`: when its hint came."""
    if job_id in bench.hands:
        return
    began, again = clock() if since is None else since, True
    with bench.hands.holding(job_id):
        while again:
            worker_id = bench.heartbeat.worker_id
            late = clock() > began + FALL_BACK_WITHIN
            if worker_id is None or not bench.heartbeat.held or bench.draining or late:
                await bench.let_go([job_id])
                return
            claim = await _claim(bench, job_id, worker_id)
            again = claim is not None and await _attempt(bench, claim)


async def _claim(bench: Bench, job_id: str, worker_id: str) -> Claim | None:
    """Take the job. What is claimed but not returned is handed back: by a beat, or by our leave."""

    def ours() -> bool:
        return bench.heartbeat.held and bench.heartbeat.worker_id == worker_id

    claim = await insist(
        lambda: bench.tx.together("", leases.claim_all, (job_id, worker_id)),
        worth_it=lambda: ours() and not bench.draining,
    )
    return claim if ours() else None


async def _attempt(bench: Bench, claim: Claim) -> bool:
    """Try a claimed job; True when it goes on to the next model, which nobody else was asked to."""
    running = bench.hands.running[claim.job.id] = Running(claim)
    structlog.contextvars.bind_contextvars(
        request_id=claim.job.request_id, job_id=claim.job.id, attempt=claim.lease.attempt
    )
    outcome = await _outcome(bench, running)
    job = None if outcome is None else await _settle(bench, running, outcome)
    await _tell(bench, running, job, outcome)
    del bench.hands.running[claim.job.id]
    running.log = None  # it knows how to stop us: a circle would stay until the collector finds it
    fell_back = isinstance(outcome, Retry) and outcome.target is not None
    return fell_back and job is not None and job.status not in TERMINAL


async def _outcome(bench: Bench, running: Running) -> Outcome | None:
    """How the attempt ends; None when it was fenced and has nothing more to say."""
    running.task = asyncio.create_task(_stream(bench, running))
    if bench.draining:
        running.stop("handed_back")
    try:
        await background.over(running.task)
    except asyncio.CancelledError:  # Celery's hard limit, or the end of the process
        running.stop("handed_back")
        await background.over(running.task)
    try:
        return _stopped(running) if running.task.cancelled() else await _ended(bench, running)
    except Exception as error:
        return _broke(error)


def _stopped(running: Running) -> Outcome | None:
    """What it means that the stream was stopped."""
    match running.why:
        case "cancelled" if running.called_at is None:
            return Cancelled()
        case "cancelled":
            return Cancelled(running.said(billed=True))
        case "handed_back" if running.committed:
            # No other attempt could go on from here; so its reader need not wait for one.
            fault = Fault.of(WorkerLost("The worker had to stop in mid-answer."))
            return Failed(fault, running.said())
        case "handed_back":
            return HandedBack(running.said())
        case _:
            return None


async def _ended(bench: Bench, running: Running) -> Outcome:
    """What the stream's end means: its own outcome, or a decision about its failure."""
    assert running.task is not None
    error = running.task.exception()
    if isinstance(error, TimeoutError):
        error = UpstreamTimeout("The attempt took longer than it may in all.")
    if isinstance(error, UpstreamError) and error.upstream_status is not None:
        running.upstream_status = error.upstream_status
    if running.called_at is not None and running.model is not None:
        await bench.breakers.heard(running.model.name, error, age=running.age)
    if error is None:
        return running.task.result()
    if not isinstance(error, ServiceError):
        return replace(_broke(error), said=running.said())
    claim = running.claim
    decided = retry.after_failure(
        error,
        tries=claim.tries,
        max_attempts=claim.job.max_attempts,
        committed=running.committed,
        targets=running.targets,
        called=running.called,
    )
    log.info("attempt_failed", code=error.code, decision=type(decided).__name__.lower())
    decided = replace(decided, said=running.said())
    if isinstance(decided, Failed) and claim.job.target > 0:
        rejected = isinstance(error, UpstreamRejected)
        return await _in_all(bench, claim.job, decided, rejected=rejected)
    return decided


async def _in_all(bench: Bench, job: Job, failed: Failed, *, rejected: bool) -> Failed:
    """The end of a job that has fallen back before."""
    try:
        tries = await bench.tx.read(jobs.attempts, job.id)
    except Unavailable:
        return failed
    fault = retry.in_all(failed, tries, rejected=rejected)
    return replace(failed, fault=fault)


def _broke(error: BaseException) -> Failed:
    """A bug of ours: it would be the same the next time."""
    log.error("attempt_broke", exc_info=error)
    return Failed(Fault.of(InternalError("Something went wrong on our side; it has been logged.")))


async def _stream(bench: Bench, running: Running) -> Outcome:
    """Call the upstream and pass on what it says, to the end. Raises `ServiceError`."""
    job = running.claim.job
    request = orjson.loads(running.claim.request)
    if job.cancel_requested_at is not None:
        return Cancelled()
    if job.batch_id is not None:
        running.log = bench.publisher.unread(job.id, job.attempt)
    elif (ended := await _open_log(bench, running)) is not None:
        return ended
    # A reload puts others in their place.
    upstreams, entries = bench.upstreams, bench.catalog.upstreams
    model = await _choose(bench, running, request, upstreams)
    running.left_out = features.unsupported(request, model.lacks)
    request = features.without(request, running.left_out)
    batches = upstreams[model.upstream].stream(
        request,
        model=model.upstream_model,
        max_output_tokens=prices.choice_cap(request, model),
    )
    del request  # the answer may take minutes
    if entries[model.upstream].on_cancel == "drain":
        batches = bench.remainders.reading(running, batches)
    running.called_at = time.monotonic()
    async with (
        asyncio.timeout(bench.settings.attempt_timeout.total_seconds()),
        aclosing(batches),
    ):
        async for batch in batches:
            running.upstream_status = 200
            running.hear(batch)
            await bench.publisher.room()
            if not running.transcript.ended:
                await bench.pace.turn()
    running.publish()
    return Completed(running.said(billed=True))


async def _open_log(bench: Bench, running: Running) -> Outcome | None:
    """Begin the attempt's log; how the attempt ends when it cannot be begun."""
    job = running.claim.job
    every = 0.0 if job.stream else UNREAD_EVERY
    if job.attempt == 1:  # nobody to fence, and nothing to read
        running.log = begun = bench.publisher.begin(job.id, every=every)
        begun.on_fenced = partial(running.stop, "fenced")
        return None
    try:
        if running.read_live and (said := await _said_before(bench, running)):
            lost = WorkerLost("The worker was lost after it had begun to answer.")
            return Failed(Fault.of(lost), said)
        opened = await bench.publisher.open(job.id, job.attempt, every=every)
    except (RedisError, OSError) as error:
        log.warning("redis_away", error=str(error))
        return HandedBack(after=WITHOUT_REDIS)
    if opened is None:  # the row was put back to an older attempt: catch up with the log
        return HandedBack()
    running.log, opened.on_fenced = opened, partial(running.stop, "fenced")
    return None


async def _choose(
    bench: Bench, running: Running, request: dict[str, Any], upstreams: Mapping[str, Upstream]
) -> Model:
    """The model to call. Raises `ModelUnavailable`, or `ModelNotFound`."""
    job = running.claim.job
    chain = targets.chain(bench.catalog, job, request)
    running.targets = targets.at_hand(chain, job.target, upstreams)
    if not running.targets:
        raise ModelUnavailable(f"This worker has no key for any upstream of {job.model!r}.")
    running.called = await bench.breakers.first(running.targets)
    return running.targets[running.called].model


async def _said_before(bench: Bench, running: Running) -> Said | None:
    """What a reader has seen of the attempt before this one; None when that had not spoken.

    Nothing, when Redis has lost how it began: what is left is no answer, nor a part of one.
    """
    entries = streams.newest(await streams.read(bench.redis, running.claim.job.id))
    spoken = [entry for entry in entries if entry.kind == streams.DELTAS]
    if not spoken:
        return None
    if entries[0].kind == streams.DELTAS:
        return Said()
    lines = [line for entry in spoken for line in entry.deltas]
    for chunk in map(orjson.loads, lines):
        running.transcript.add(chunk.get("choices") or [], chunk)
    return running.kept(lines, spoken[0].first_seq)


async def _settle(bench: Bench, running: Running, outcome: Outcome) -> Job | None:
    """Write the end down, however long the database is away; the job, None when it was lost.

    The lease need not be held any more: the row knows best whether the attempt still counts.
    """
    broke = False
    while True:
        try:
            job = await insist(
                partial(_written, bench.tx, running, outcome),
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


async def _written(tx: Transactions, running: Running, outcome: Outcome) -> Job | None:
    """The job once its end is committed; most complete, and do so together with others."""
    claim, job = running.claim, running.claim.job
    if not isinstance(outcome, Completed):
        return await tx.by(job.account_id, leases.settle, claim.lease, outcome)
    done = completing.Done(claim.lease, outcome, job)
    ended = await tx.together(job.account_id, completing.settle, done)
    if ended is None:
        return None
    running.available, running.heralded = ended.available, ended.heralded
    job.status, job.error = ended.status.value, None
    job.usage, job.cost = outcome.said.usage, None if job.held is None else done.cost
    return job


async def _tell(bench: Bench, running: Running, job: Job | None, outcome: Outcome | None) -> None:
    """After the commit: end the log and put the limits right, or leave it to the next attempt."""
    if job is not None and job.status in TERMINAL and running.heralded:
        bench.deliveries.wake()
    if job is None or job.status not in TERMINAL:
        if running.log is not None:
            running.log.drop()
    elif running.log is None:
        await endings.announce(bench.tx, bench.redis, job)
    else:
        end = streams.end_payload(job.status, error=job.error, usage=job.usage)
        await running.log.close(end, _answer(running, job, outcome) or end)
        bench.refunds.owed(job)


def _answer(running: Running, job: Job, outcome: Outcome | None) -> bytes | None:
    """The end with all that a held request is answered, if one may wait for it."""
    if not isinstance(outcome, Completed) or job.status != JobStatus.COMPLETED:
        return None
    said, unknown = outcome.said, running.available is None and job.held is not None
    if job.stream or job.background or unknown or len(said.response) > TOLD:
        return None
    return streams.answer_payload(
        said.response,
        usage=said.usage,
        cost=job.cost,
        served_model=said.served_model,
        available=running.available,
    )
