"""From a validated request to a committed job and its hint."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import orjson

from api import affording
from api.callers import Caller
from api.commit import commit
from api.front import Front
from api.throttle import Admission
from api.wire.chat import ChatCompletionRequest
from api.wire.jobs import JobSubmit
from api.wire.webhooks import check_receiver
from shared import clock, features, idempotency, prices
from shared.errors import (
    InsufficientCredits,
    KeyLimitReached,
    QueueFull,
    RateLimited,
)
from shared.idempotency import Asked, Sent
from shared.jobs import Submission
from shared.lifecycle import Lane
from shared.prices import Prices
from shared.tables import Job

LOOK_EVERY: Final = 0.1
"""Seconds between two looks at an earlier connection."""


def submission(
    front: Front,
    caller: Caller,
    request_id: str,
    request: ChatCompletionRequest,
    raw: dict[str, Any],
    *,
    background: bool,
    stop_after: int | None = None,
) -> Submission:
    """What becomes a job.

    Raises `ModelNotFound` or `ModelNotAllowed`, or `InvalidRequest` for what the model cannot take
    and for a webhook that is not public.
    """
    model = front.catalog.find(request.model)
    caller.check_model(model)
    if request.webhook is not None:
        check_receiver(request.webhook.url, front.settings.allowed, param="webhook.url")
    body = request.upstream_body(raw)
    least = prices.least_prompt_tokens(body, room=model.context_window)
    chain = front.catalog.chain(request.model, features.used(body), tokens=least)
    prompt = prices.prompt_tokens(body)
    asked = request.on_disconnect or ("continue" if background else "cancel")
    planned = request if isinstance(request, JobSubmit) else None
    lane = Lane((planned and planned.lane) or Lane.INTERACTIVE)
    options = request.stream_options
    return Submission(
        account_id=caller.account_id,
        key_id=caller.key_id,
        request_id=request_id,
        model=request.model,
        body=orjson.dumps(body),
        lane=lane,
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
        background=background,
        attended_for=front.attendance.first_term if asked == "cancel" else None,
        run_at=clock.milliseconds(planned.run_at if planned else None),
        stop_after=stop_after,
        expires_at=clock.milliseconds(planned.expires_at if planned else None),
        max_attempts=(planned and planned.max_attempts) or front.settings.max_attempts,
        metadata=request.metadata or None,
        webhook=request.webhook.model_dump(exclude_none=True) if request.webhook else None,
        hinted=front.window.admits(lane) and not caller.takes_turns(model),
        hold=prices.most(body, chain, prompt=prompt),
        prompt_tokens=prompt,
        output_tokens=prices.output_cap(body, model, prompt=prompt),
        left_out=features.unsupported(body, model.lacks),
        prices={model.name: Prices.of(model).snapshot for model in chain},
    )


def told(submissions: Sequence[Submission]) -> dict[str, str]:
    """The header that names what was left out of the requests for the models they ask for."""
    names = {name for new in submissions for name in new.left_out}
    return {"x-dropped-parameters": ", ".join(sorted(names))} if names else {}


async def accept(
    front: Front,
    caller: Caller,
    admission: Admission,
    submissions: Sequence[Submission],
    sent: Sent | None,
) -> tuple[list[Job], bool]:
    """Commit the jobs, all or none, then hint those that may start at once.

    A request that came before leads to the jobs it became then (True). A later moment, the batch
    lane, a limit on running jobs and a full queue are left to the feeder. Raises `RateLimited`,
    `IdempotencyKeyReused`, or `Unavailable` when the queue is full or the database does not answer.
    """
    if sent is not None and sent.retried and sent.key is None:
        earlier = await _sent_before(front, submissions[0], sent)
        if earlier:
            return earlier, True
    try:
        front.backlog.check(len(submissions))
        await admission.take(front.catalog, submissions)
    except (QueueFull, RateLimited):
        # A request that came before costs nothing more, and its caller asks what became of it.
        known = await front.tx.read(idempotency.known, submissions[0].account_id, sent)
        if not known:
            raise
        return known, True
    accepted, again = await _pay(front, caller, admission, submissions, sent)
    if again:
        await admission.end()
    else:
        await admission.keep(accepted)
        front.backlog.came(submissions)
        _hint(front, submissions)
    return accepted, again


async def _sent_before(front: Front, new: Submission, sent: Sent) -> list[Job]:
    """The jobs of the connection that an SDK gave up; none when it is still read.

    Who reads a job renews its presence. What a killed process attended is not renewed, so we watch
    until it is, or until it lapses.
    """
    watched: tuple[str, int | None] | None = None
    while True:
        grace_ms = front.attendance.grace_ms
        found = await front.tx.read(
            idempotency.earlier, new.account_id, new.key_id, sent, grace_ms=grace_ms
        )
        if found is None:
            return []
        rows, unread = found
        if unread:
            return rows
        if watched is not None and watched != (rows[0].id, rows[0].attended_until):
            return []
        watched = rows[0].id, rows[0].attended_until
        await asyncio.sleep(LOOK_EVERY)


async def _pay(
    front: Front,
    caller: Caller,
    admission: Admission,
    submissions: Sequence[Submission],
    sent: Sent | None,
) -> tuple[list[Job], bool]:
    """Commit; a single job that cannot be paid for may be made smaller."""
    payable = submissions
    for _ in range(2):  # the account may have too little, and then the key
        try:
            return await _commit(front, caller, admission, payable, sent)
        except (InsufficientCredits, KeyLimitReached) as refusal:
            less = affording.smaller(submissions[0], refusal) if len(submissions) == 1 else None
            if less is None:
                raise
            payable = [less]
    return await _commit(front, caller, admission, payable, sent)


async def _commit(
    front: Front,
    caller: Caller,
    admission: Admission,
    submissions: Sequence[Submission],
    sent: Sent | None,
) -> tuple[list[Job], bool]:
    asked = Asked(
        submissions, sent, admission.check if admission.counts else None, caller.remembered
    )
    first = front.tx.together(caller.account_id, idempotency.submit_together, asked)
    again = partial(idempotency.submit, asked=asked, again=True)
    return await commit(front, caller.account_id, first, again=again)


def _hint(front: Front, submissions: Sequence[Submission]) -> None:
    for lane in {new.lane for new in submissions}:
        ours = [new for new in submissions if new.lane is lane]
        due = [new.job_id for new in ours if new.hinted and new.run_at is None]
        if due:
            front.window.sent(lane, len(due))
            front.hints.send(lane, due)
        front.metrics.accepted_of(lane.value).inc(len(ours))
