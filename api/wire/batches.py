"""Batches as OpenAI has them, and more: what makes one, what changes one, how one looks."""

import re
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.estimates import Estimate
from api.lines import ENDPOINT, MOST_LINES
from api.parse import wrong
from api.progress import Progress
from api.wire.headers import SECONDS
from api.wire.objects import likely
from api.wire.queries import BatchId
from api.wire.shapes import Closed, Metadata, ModelName
from api.wire.webhooks import BatchWebhook
from shared import clock
from shared.lifecycle import JobStatus
from shared.prices import NANO
from shared.tables import Batch, File

WINDOW: Final = re.compile(r"([0-9]{1,7})([mhd])")
LONGEST_WINDOW: Final = 30 * 24 * 3600
"""Seconds, as is the next."""
SHORTEST_WINDOW: Final = 60
LINES_AT_ONCE: Final = 10_000
"""Results that one answer may have, unless it follows."""
LONGEST_GRACE: Final = 3_600


def window_seconds(window: str) -> int | None:
    """The seconds of a window such as `24h`; None when it is none, too short or too long."""
    found = WINDOW.fullmatch(window)
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    return seconds if SHORTEST_WINDOW <= seconds <= LONGEST_WINDOW else None


def _window(text: str) -> str:
    if window_seconds(text) is None:
        raise PydanticCustomError("window", "should be a span of 1m to 30d, such as 90m or 24h")
    return text


BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
Window = Annotated[str, AfterValidator(_window)]
Priority = Annotated[int, Field(ge=0, le=9)]
Concurrency = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Expiry(Closed):
    """How long the output and error files are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchCreate(Closed):
    """The body of `POST /v1/batches`: what to run, by a file or right here, and how."""

    input_file_id: Annotated[str, StringConstraints(max_length=64)] | None = None
    requests: Annotated[list[Any], Field(min_length=1, max_length=MOST_LINES)] | None = None
    """Lines without a file: `custom_id` and `body`; `method` and `url` may be left out."""
    model: ModelName | None = None
    """What those of these requests ask that name no model themselves."""
    endpoint: Literal["/v1/chat/completions"] | None = None
    completion_window: Window = "24h"
    metadata: Metadata | None = None
    output_expires_after: Expiry | None = None
    webhook: BatchWebhook | None = None
    priority: Priority = 0
    """Of the account's own batches those with the higher one go first."""
    concurrency: Concurrency | None = None
    """Lines that may run at once; null is as many as there is room for."""
    dry_run: bool = False
    """Only say what it would be and cost."""

    @model_validator(mode="after")
    def _has_one_input(self) -> "BatchCreate":
        if self.input_file_id is None and self.requests is None:
            raise wrong("input_file_id", "required, unless there are 'requests'")
        if self.input_file_id is not None and self.requests is not None:
            raise wrong("requests", "cannot be given together with 'input_file_id'")
        if self.input_file_id is not None and self.endpoint is None:
            raise wrong("endpoint", f"required; should be '{ENDPOINT}'")
        if self.input_file_id is not None and self.model is not None:
            raise wrong("model", "only allowed with 'requests': the lines of a file name their own")
        return self

    @property
    def window_ms(self) -> int:
        """Milliseconds in which it is to be done."""
        return (window_seconds(self.completion_window) or 0) * 1000


class BatchTerms(BaseModel):
    """The query of `POST /v1/batches` when the body is the input itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    completion_window: Window = "24h"
    priority: Priority = 0
    concurrency: Concurrency | None = None
    dry_run: bool = False

    @property
    def asked(self) -> BatchCreate:
        """The same as a body would have it, with an input that is still to come."""
        return BatchCreate.model_construct(**self.model_dump())


class BatchChange(Closed):
    """The body of `PATCH /v1/batches/{id}`; what is absent stays."""

    priority: Priority = 0
    concurrency: Concurrency | None = None
    metadata: Metadata | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What was sent."""
        return self.model_dump(exclude_unset=True)


class BatchFilters(BaseModel):
    """The query of `GET /v1/batches`: newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: BatchStatus | None = None
    metadata: Metadata = Field(default_factory=dict)
    after: BatchId | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class Grace(BaseModel):
    """The query of a cancel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grace: Annotated[int, Field(ge=0, le=LONGEST_GRACE)] = 0
    """Seconds for which lines that run may go on."""


class ResultsPage(BaseModel):
    """The query of a batch's results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """The number of the last result that is known: `X-Next-Cursor`, or how many lines came."""
    limit: Annotated[int, Field(ge=1, le=LINES_AT_ONCE)] = 1_000
    follow: bool = False
    status: frozenset[JobStatus] = frozenset()
    """Only these; empty means however they ended."""


def batch_object(
    progress: Progress, *, error_summary: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A batch, as OpenAI shows it and more; lists come without `error_summary`."""
    batch, counts = progress.batch, progress.counts
    path = f"/v1/batches/{batch.id}"
    unfinished = counts.failed + counts.cancelled + counts.expired
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": batch.errors and {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "status_reason": progress.reason,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        **_moments(batch),
        "request_counts": {
            "total": counts.total,
            "completed": counts.completed,
            "failed": unfinished,
        },
        "counts": asdict(counts),
        "usage": batch.usage,
        "cost": {"credits": batch.cost / NANO},
        "error_summary": error_summary,
        "eta_seconds": progress.eta,
        "last_result": batch.results,
        "priority": batch.priority,
        "concurrency": batch.concurrency,
        "metadata": batch.batch_metadata,
        "links": {
            "self": path,
            "results": f"{path}/results",
            "events": f"{path}/events",
            "cancel": f"{path}/cancel",
        },
    }


def _moments(batch: Batch) -> dict[str, int | None]:
    ended = {
        f"{status}_at": batch.ended_at if batch.status == status else None
        for status in ("completed", "failed", "expired", "cancelled")
    }
    moments = {
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "cancelling_at": batch.cancelling_at,
        "paused_at": batch.paused_at,
        **ended,
    }
    return {name: clock.seconds(moment) for name, moment in moments.items()}


def progress_event(progress: Progress) -> dict[str, Any]:
    """What `batch.progress` tells."""
    batch = progress.batch
    return {
        "id": batch.id,
        "status": batch.status,
        "status_reason": progress.reason,
        "counts": asdict(progress.counts),
        "usage": batch.usage,
        "cost": {"credits": batch.cost / NANO},
        "rate": None if progress.rate is None else round(progress.rate, 3),
        "eta_seconds": progress.eta,
        "last_result": batch.results,
    }


def dry_run_object(
    file: File,
    errors: list[dict[str, Any]] | None,
    estimate: Estimate,
    eta: tuple[float, float] | None,
) -> dict[str, Any]:
    """What a batch of this input would be, and cost at most, and when it would be done."""
    return {
        "object": "batch.dry_run",
        "request_counts": {"total": file.lines},
        "errors": errors and {"object": "list", "data": errors},
        "tokens": {"prompt": estimate.prompt, "most_completion": estimate.completion},
        "cost": {"most": estimate.cost / NANO},
        "eta_seconds": likely(eta),
    }
