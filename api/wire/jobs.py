"""The native view's requests: completions with a time and a lane, up to a thousand."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from api.parse import validate, wrong
from api.wire.chat import ChatCompletionRequest
from api.wire.shapes import UnixSeconds
from shared import clock
from shared.errors import InvalidRequest

MOST_JOBS = 1_000
FURTHEST = 30 * 24 * 3600
"""Seconds ahead a job may be planned."""


class JobSubmit(ChatCompletionRequest):
    """One job of `POST /v1/jobs`: a chat completion request and how to queue it."""

    OURS: ClassVar[frozenset[str]] = ChatCompletionRequest.OURS | {
        "run_at",
        "expires_at",
        "lane",
        "max_attempts",
    }

    run_at: UnixSeconds | None = None
    """Unix seconds; a moment that has passed means at once."""
    expires_at: UnixSeconds | None = None
    """Unix seconds by which it must have started."""
    lane: Literal["interactive", "batch"] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=10)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "JobSubmit":
        # Our own clock will do: this only catches milliseconds and slips, it decides nothing.
        if self.run_at is not None and self.run_at > clock.now() // 1000 + FURTHEST:
            raise wrong("run_at", "should be Unix seconds, at most 30 days ahead")
        if self.expires_at is not None and self.expires_at <= (self.run_at or 0):
            raise wrong("expires_at", "should be later than 'run_at'")
        return self


def parse_submission(data: Any) -> list[JobSubmit]:
    """The jobs in a body that is one request or an array of 1 to 1,000; one fault refuses all.

    A job in an array has nobody to stream to, so `stream: true` there is refused. Raises
    `InvalidRequest`, with a `param` such as `[3].messages[0].content` for arrays.
    """
    if not isinstance(data, list):
        return [validate(JobSubmit, data)]
    if not 1 <= len(data) <= MOST_JOBS:
        raise InvalidRequest(f"An array must hold 1 to {MOST_JOBS:,} jobs; got {len(data):,}.")
    jobs = []
    for number, item in enumerate(data):
        job = validate(JobSubmit, item, within=f"[{number}]")
        if job.stream:
            raise InvalidRequest(
                "Jobs in an array cannot stream to the answer; read their events instead.",
                param=f"[{number}].stream",
            )
        jobs.append(job)
    return jobs
