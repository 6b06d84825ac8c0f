"""What an attempt leaves when it has ended: the content, and how it went, each in one statement."""

from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, bindparam, func, update
from sqlmodel import Session, col

from shared import streams
from shared.errors import Fault
from shared.jobs import Lease
from shared.outcomes import Said
from shared.prices import Prices
from shared.tables import Attempt, Job, JobContent

_KEPT: Final[dict[str, Any]] = {
    name: bindparam(f"kept_{name}") for name in ("response", "log", "log_first_seq")
}
KEEP: Final = update(JobContent).where(col(JobContent.job_id) == bindparam("ours")).values(_KEPT)
_TRIED: Final = update(Attempt).where(
    col(Attempt.job_id) == bindparam("ours"), col(Attempt.number) == bindparam("this")
)
_NOTED: Final = (
    "outcome",
    "ended_at",
    "first_delta_at",
    "provider",
    "model",
    "upstream_status",
    "error",
)
NOTE: Final = _TRIED.values(
    **{name: bindparam(f"tried_{name}") for name in _NOTED},
    usage=func.coalesce(col(Attempt.usage), bindparam("used", type_=JSON(none_as_null=True))),
    cost=func.coalesce(col(Attempt.cost), bindparam("spent", type_=BigInteger)),
)


def kept(lease: Lease, said: Said) -> dict[str, Any]:
    """What `KEEP` needs: the content that an ended attempt leaves."""
    return {
        "ours": lease.job_id,
        "kept_response": said.response or None,
        "kept_log": streams.pack(said.log),
        "kept_log_first_seq": said.first_seq,
    }


def progress(said: Said) -> dict[str, Any]:
    """The columns of a job that tell of what was said."""
    return {
        "usage": said.usage,
        "cost_estimated": said.usage_estimated,
        "deltas": said.deltas,
        "characters": said.characters,
        "last_seq": said.first_seq + said.deltas,
        "first_delta_at": said.first_delta_at,
        "provider": said.provider,
        "served_model": said.served_model,
        "warnings": said.warnings,
    }


def tried(
    lease: Lease, word: str, said: Said, fault: Fault | None, job: Job | None, now: int
) -> dict[str, Any]:
    """What `NOTE` needs: how an attempt ended."""
    return {
        "ours": lease.job_id,
        "this": lease.attempt,
        "tried_outcome": word,
        "tried_ended_at": now,
        "tried_first_delta_at": said.first_delta_at,
        "tried_provider": said.provider,
        "tried_model": said.model,
        "tried_upstream_status": said.upstream_status,
        "tried_error": asdict(fault) if fault else None,
        "used": said.usage,
        "spent": _spent(job, said),
    }


def counted(session: Session, lease: Lease, said: Said) -> None:
    """Note what the upstream of a cancelled attempt counted to the end, settled yet or not."""
    spent = _spent(session.get(Job, lease.job_id), said)
    named = {"ours": lease.job_id, "this": lease.attempt, "usage": said.usage, "cost": spent}
    session.connection().execute(_TRIED, named)


def _spent(job: Job | None, said: Said) -> int | None:
    """The nano-credits that an upstream's own count comes to."""
    priced = job and (job.prices or {}).get(said.model or "")
    if not priced or said.usage is None or said.usage_estimated:
        return None
    return Prices.kept(priced).cost(said.usage)
