"""From a validated request to a committed job and its hint."""

from collections.abc import Sequence
from typing import Any

import orjson

from api.deps import Caller
from api.front import Front
from api.wire.chat import ChatCompletionRequest
from api.wire.jobs import JobSubmit
from shared import clock, jobs
from shared.jobs import Submission
from shared.lifecycle import Lane
from shared.tables import Job


def submission(
    front: Front,
    caller: Caller,
    request_id: str,
    request: ChatCompletionRequest,
    raw: dict[str, Any],
    *,
    background: bool,
) -> Submission:
    """What becomes a job. Raises `ModelNotFound` when the catalogue has no such model."""
    front.catalog.find(request.model)
    asked = request.on_disconnect or ("continue" if background else "cancel")
    planned = request if isinstance(request, JobSubmit) else None
    lane = Lane((planned and planned.lane) or Lane.INTERACTIVE)
    options = request.stream_options
    return Submission(
        account_id=caller.account_id,
        key_id=caller.key_id,
        request_id=request_id,
        model=request.model,
        body=orjson.dumps(request.upstream_body(raw)),
        lane=lane,
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
        background=background,
        attended_for=front.attendance.first_term if asked == "cancel" else None,
        run_at=clock.milliseconds(planned.run_at if planned else None),
        expires_at=clock.milliseconds(planned.expires_at if planned else None),
        max_attempts=(planned and planned.max_attempts) or front.settings.max_attempts,
        metadata=request.metadata or None,
        hinted=front.window.admits(lane),
    )


async def accept(front: Front, submissions: Sequence[Submission]) -> list[Job]:
    """Commit the jobs, all or none, then hint those that may start at once.

    A later moment, the batch lane and a full queue are left to the sweep.
    """
    accepted = await front.tx(jobs.submit_all, submissions)
    for lane in Lane:
        ours = [new for new in submissions if new.lane == lane]
        due = [new.job_id for new in ours if new.hinted and new.run_at is None]
        if due:
            front.window.sent(lane, len(due))
            front.hints.send(lane, due)
        if ours:
            front.metrics.accepted.labels(lane.value).inc(len(ours))
    return accepted
