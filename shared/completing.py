"""Jobs that complete by the hundred: what `leases.settle` does, in a few statements.

Most end plainly: still held, and at no more than was set aside. The row of each is moved by the
UPDATE that `jobs.move` runs; what follows from that is written for all at once. Every other one is
left to `leases.settle`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Connection, Executable, exists, select
from sqlmodel import Session

from shared import clock, events, jobs, leases, ledger, moving, prepared, remains
from shared.jobs import Lease
from shared.ledger import Settled
from shared.lifecycle import JobStatus
from shared.outcomes import Completed
from shared.tables import Job


@dataclass(frozen=True)
class Done:
    """One that has completed, and the job as it was claimed."""

    lease: Lease
    outcome: Completed
    job: Job

    @cached_property
    def cost(self) -> int:
        """Nano-credits."""
        return jobs.price(self.job.prices, self.outcome.said.bill, self.outcome.said.usage)

    @property
    def plain(self) -> bool:
        """Whether it can be settled with others."""
        return self.job.webhook is None and self.cost <= (self.job.held or 0)


class Ended(NamedTuple):
    """What became of a job."""

    status: JobStatus
    available: int | None
    """Nano-credits that its account can spend now; None when that was not looked at."""
    heralded: bool
    """There may be webhooks to send."""


def settle(session: Session, many: list[Done]) -> list[Ended | None]:
    """Write down how each ended; None for one whose lease was lost.

    They are one account's. Idempotent, as `leases.settle` is.
    """
    connection = session.connection()
    # In order, as everybody takes several rows.
    in_turn = sorted(many, key=lambda one: one.lease.job_id)
    moved = _move(connection, [one for one in in_turn if one.plain])
    left = _pay(session, [one for one, _ in moved])
    ended = {one.lease: Ended(JobStatus.COMPLETED, left, wanted) for one, wanted in moved}
    _tell(session, [one.job for one, wanted in moved if wanted])
    return [ended.get(one.lease) or _alone(session, one) for one in many]


def _move(connection: Connection, many: Sequence[Done]) -> list[tuple[Done, bool]]:
    """End those that are held; of each, whether its account has an endpoint.

    What they said is kept, and how they were tried: to PostgreSQL in the same statement.
    """
    at_once, now, moved = connection.dialect.name == "postgresql", clock.now(), []
    for _, some in groupby(map(_change, many), key=lambda each: id(each[1])):
        done, changes, named = zip(*some, strict=True)
        left = [_left(one, now) for one in done]
        change = changes[0]
        if at_once:
            change, named = _leaving(change), [{**a, **b} for a, b in zip(named, left, strict=True)]
        found = prepared.each(connection, change, named)
        ended = [
            (one, it, bool(row[0])) for one, it, row in zip(done, left, found, strict=True) if row
        ]
        if ended and not at_once:
            prepared.run(connection, remains.KEEP, [it for _, it, _ in ended])
            prepared.run(connection, remains.NOTE, [it for _, it, _ in ended])
        moved += [(one, wanted) for one, _, wanted in ended]
    return moved


def _change(one: Done) -> tuple[Done, Executable, dict[str, Any]]:
    columns = remains.progress(one.outcome.said)
    if one.job.held is not None:
        columns["cost"] = one.cost
    return one, *moving.statement(
        one.lease.job_id,
        JobStatus.COMPLETED,
        (),
        attempt=one.lease.attempt,
        columns={"error": None, **columns},
        whole=False,
    )


def _left(one: Done, now: int) -> dict[str, Any]:
    """What its end leaves: the content, and the attempt."""
    said = one.outcome.said
    tried = remains.tried(one.lease, "completed", said, None, one.job, now)
    return {**remains.kept(one.lease, said), **tried}


@lru_cache
def _leaving(ending: Any) -> Executable:
    """The UPDATE of a job that ends, and in the same statement what that leaves."""
    ended = ending.cte("ended")
    there = exists(select(ended.c.id))
    kept, tried = remains.KEEP.where(there), remains.NOTE.where(there)
    return select(ended).add_cte(kept.cte("kept"), tried.cte("tried"))


def _pay(session: Session, many: Sequence[Done]) -> int | None:
    """Give back what was set aside for these, but for what they cost; how much is left."""
    dear = [
        Settled(each.job.account_id, each.job.key_id, each.job.id, each.job.held, each.cost)
        for each in many
        if each.job.held is not None
    ]
    return ledger.settle_all(session, dear)


def _tell(session: Session, ended: Sequence[Job]) -> None:
    """Record the end of those whose account has an endpoint; of lines, if that asks for them."""
    batch_ids = {job.batch_id for job in ended if job.batch_id is not None}
    asked = {one for one in batch_ids if events.lines_wanted(session, one, JobStatus.COMPLETED)}
    for job in ended:
        if job.batch_id is None or job.batch_id in asked:
            row = session.get_one(Job, job.id, populate_existing=True)
            events.job_ended(session, row)


def _alone(session: Session, one: Done) -> Ended | None:
    job = leases.settle(session, one.lease, one.outcome)
    return None if job is None else Ended(JobStatus(job.status), None, True)
