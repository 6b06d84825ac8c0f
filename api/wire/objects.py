"""Rows as the wire shows them: the job, the completion and what lists are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from shared import clock, ids
from shared.catalog import Model
from shared.errors import Fault
from shared.lifecycle import TERMINAL, JobStatus
from shared.prices import NANO
from shared.standing import Standing
from shared.streams import Entry
from shared.tables import Attempt, Job


def completion_path(job: Job) -> str:
    """Where the OpenAI view of a job is."""
    return f"/v1/chat/completions/{ids.COMPLETION}{job.id}"


def status(job: Job) -> str:
    """The status as shown: a running job that was asked to stop is `cancelling`."""
    stopping = job.status == JobStatus.IN_PROGRESS and job.cancel_requested_at is not None
    return "cancelling" if stopping else str(job.status)


def job_object(
    job: Job, *, standing: Standing | None = None, latest: Entry | None = None
) -> dict[str, Any]:
    """The native view of a job; `latest` is its log's last entry while it runs."""
    job_id = ids.JOB + job.id
    path = f"/v1/jobs/{job_id}"
    return {
        "id": job_id,
        "object": "job",
        "status": status(job),
        "status_reason": job.status_reason,
        "model": job.model,
        "served_model": job.served_model,
        "provider": job.provider,
        "lane": job.lane,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "created_at": clock.seconds(job.created_at),
        "run_at": clock.seconds(job.run_at),
        "started_at": clock.seconds(job.started_at),
        "first_delta_at": clock.seconds(job.first_delta_at),
        "completed_at": clock.seconds(job.completed_at),
        "expires_at": clock.seconds(job.expires_at),
        "stop_at": clock.seconds(job.stop_at),
        "queue": {"lane": job.lane, **_place(standing)},
        "progress": _progress(job, latest),
        "usage": job.usage,
        "cost": {"credits": (job.cost or 0) / NANO, "estimated": job.cost_estimated},
        "error": job_error(job),
        "warnings": job.warnings or [],
        "batch_id": job.batch_id,
        "custom_id": job.custom_id,
        "metadata": job.job_metadata or {},
        "request_id": job.request_id,
        "links": {
            "self": path,
            "completion": completion_path(job),
            "events": f"{path}/events",
            "cancel": f"{path}/cancel",
        },
    }


def _place(standing: Standing | None) -> dict[str, Any]:
    if standing is None:
        return {"position": None, "eta_seconds": None}
    return {"position": standing.position, "eta_seconds": likely(standing.eta)}


def likely(eta: tuple[float, float] | None) -> dict[str, float] | None:
    """Seconds within which something happens as likely as not, and nine times in ten."""
    return eta and {"p50": round(eta[0], 1), "p90": round(eta[1], 1)}


def _progress(job: Job, latest: Entry | None) -> dict[str, int]:
    if job.status in TERMINAL or latest is None:
        deltas, characters, last_seq = job.deltas, job.characters, job.last_seq
    else:
        (deltas, characters), last_seq = latest.progress, latest.seq
    return {"deltas": deltas, "characters": characters, "last_seq": last_seq}


def job_error(job: Job) -> dict[str, Any] | None:
    """Why a job failed, as OpenAI's error object."""
    if job.error is None:
        return None
    return {**Fault(**job.error).body(), "job_id": ids.JOB + job.id}


def fault(status: str, job: Mapping[str, Any]) -> Fault:
    """Why a job of this final status gave no answer; `job` has the `error` kept with it."""
    if job["error"] is not None:
        return Fault(**job["error"])
    message = f"The job was {status} before it had finished."
    return Fault(400, f"job_{status}", "invalid_request_error", message)


def completion(
    job: Job, response: bytes | None, *, job_view: dict[str, Any], partial: bool = False
) -> dict[str, Any]:
    """The OpenAI view of a job in any state.

    `choices` is empty until it completed; with `partial`, also after it was cut short.
    """
    shown: dict[str, Any] = {
        "id": ids.COMPLETION + job.id,
        "object": "chat.completion",
        "created": clock.seconds(job.created_at),
        "model": job.model,
        "choices": [],
        "usage": job.usage,
    }
    if response is not None:
        kept = orjson.loads(response)
        shown = kept if partial or job.status == JobStatus.COMPLETED else {**kept, "choices": []}
    return {
        **shown,
        "metadata": job.job_metadata or {},
        "status": status(job),
        "error": job_error(job),
        "job": job_view,
    }


def attempt_object(attempt: Attempt) -> dict[str, Any]:
    """One try at a job."""
    spoke_at, error = attempt.first_delta_at, attempt.error
    return {
        "object": "job.attempt",
        "number": attempt.number,
        "worker": attempt.worker_id,
        "model": attempt.model,
        "provider": attempt.provider,
        "upstream_status": attempt.upstream_status,
        "started_at": clock.seconds(attempt.started_at),
        "first_delta_at": clock.seconds(spoke_at),
        "first_delta_ms": None if spoke_at is None else spoke_at - attempt.started_at,
        "ended_at": clock.seconds(attempt.ended_at),
        "outcome": attempt.outcome,
        "error": error and Fault(**error).body(),
        "usage": attempt.usage,
    }


def model_object(model: Model, *, available: bool, breaker: str) -> dict[str, Any]:
    """A model on offer, as OpenAI lists it and more; prices are credits per million tokens."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.upstream,
        "context_window": model.context_window,
        "max_output_tokens": model.max_output_tokens,
        "input_price": model.input_price,
        "cached_input_price": model.cached_input_price,
        "cache_write_price": model.cache_write_price,
        "output_price": model.output_price,
        "free": model.free,
        "aliases": model.aliases,
        "fallbacks": model.fallbacks,
        "lacks": sorted(model.lacks),
        "limits": model.limits and model.limits.model_dump(exclude_none=True),
        "available": available,
        "breaker": breaker,
    }


def list_object(data: Sequence[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """A page as OpenAI's SDKs turn it; they go on after the last id until `has_more` is false."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data and "id" in data[0] else None,
        "last_id": data[-1]["id"] if data and "id" in data[-1] else None,
        "has_more": has_more,
    }
