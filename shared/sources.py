"""Who waits for their turn.

Jobs of one model in one batch, or of one model among an account's other jobs, are alike: a source.
Sources are found by leaping through an index from one to the next, so that a million jobs of one
cost no more than ten.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import sqlalchemy
from sqlalchemy import ColumnElement, Integer, Select, bindparam, func
from sqlmodel import Session, col, select

from shared import hints, jobs
from shared.clock import database_now
from shared.lifecycle import Lane
from shared.tables import Batch, Job

_WAITING: Final = (
    *jobs.startable(),
    col(Job.hinted_at).is_(None),
    col(Job.run_at).is_(None),
    ~hints.suspect(),
)
_MOST: Final = bindparam("most", type_=Integer)


@dataclass(frozen=True, slots=True)
class Source:
    """Jobs alike that wait for their turn."""

    account_id: str
    batch_id: str | None
    """None: the account's jobs that are in no batch."""
    model: str
    """As the callers named it."""
    waiting: int
    """How many, counted as far as asked."""
    priority: int = 0
    at_once: int | None = None
    """Lines of the batch that may be in flight; None: any number."""
    expires_in: int | None = None
    """Milliseconds until the batch's deadline."""


def waiting(session: Session, lane: Lane, most: int) -> list[Source]:
    """Everybody who waits in a lane, each counted up to `most`."""
    most_of = {"most": most}
    found = [Source(row[0], None, *row[1:]) for row in session.execute(_alike(lane), most_of)]
    if lane == Lane.BATCH:
        found += _batched(session, [tuple(row) for row in session.execute(_alike(None), most_of)])
    return found


def _batched(session: Session, lines: list[Any]) -> Iterable[Source]:
    terms = select(Batch, (col(Batch.expires_at) - database_now()).label("left")).where(
        col(Batch.id).in_({batch_id for batch_id, _, _ in lines}), col(Batch.paused_at).is_(None)
    )
    batches = {batch.id: (batch, left) for batch, left in session.exec(terms)} if lines else {}
    for batch_id, model, waiting in lines:
        if batch_id in batches:
            batch, left = batches[batch_id]
            yield Source(
                *(batch.account_id, batch_id, model, waiting),
                *(batch.priority, batch.concurrency, left),
            )


def _owned(lane: Lane | None) -> tuple[list[ColumnElement[bool]], Any]:
    """What holds of a lane's waiting jobs that are in no batch, and whose they are.

    None: of lines, which are their batch's.
    """
    if lane is None:
        return [*_WAITING, col(Job.batch_id).is_not(None)], col(Job.batch_id)
    loose = [*_WAITING, col(Job.lane) == lane.value, col(Job.batch_id).is_(None)]
    return loose, col(Job.account_id)


@cache  # to build it takes longer than to run it
def _alike(lane: Lane | None) -> Select[Any]:
    """Each owner and model, and how many jobs they have, counted up to `:most`."""
    which, owner = _owned(lane)
    model = col(Job.model)

    def least(column: Any, *conditions: ColumnElement[bool]) -> Any:
        found = sqlalchemy.select(column).where(*which, *conditions)
        return found.order_by(column).limit(1).scalar_subquery()

    owners = sqlalchemy.select(least(owner).label("owner")).cte("owners", recursive=True)
    following = sqlalchemy.select(least(owner, owner > owners.c.owner))
    owners = owners.union_all(following.where(owners.c.owner.is_not(None)))

    first = least(model, owner == owners.c.owner).label("model")
    firsts = sqlalchemy.select(owners.c.owner, first).where(owners.c.owner.is_not(None))
    pairs = firsts.cte("pairs", recursive=True)
    next_model = least(model, owner == pairs.c.owner, model > pairs.c.model)
    onward = sqlalchemy.select(pairs.c.owner, next_model).where(pairs.c.model.is_not(None))
    pairs = pairs.union_all(onward)

    theirs = (owner == pairs.c.owner, model == pairs.c.model)
    some = sqlalchemy.select(col(Job.id)).where(*which, *theirs).limit(_MOST).correlate(pairs)
    counted = sqlalchemy.select(func.count()).select_from(some.subquery()).scalar_subquery()
    found = sqlalchemy.select(pairs.c.owner, pairs.c.model, counted)
    return found.where(pairs.c.model.is_not(None))


@cache
def _oldest(lane: Lane | None) -> Select[Any]:
    """The first `:most` jobs of a source."""
    which, owner = _owned(lane)
    theirs = (owner == bindparam("owner"), col(Job.model) == bindparam("model"))
    return sqlalchemy.select(col(Job.id)).where(*which, *theirs).order_by(col(Job.id)).limit(_MOST)


def next_of(session: Session, lane: Lane, places: Mapping[Source, int]) -> list[str]:
    """So many jobs of each source, the oldest first; marks nothing."""
    chosen: list[str] = []
    for source, most in places.items():
        owner = source.batch_id or source.account_id
        oldest = _oldest(lane if source.batch_id is None else None)
        named = {"owner": owner, "model": source.model, "most": most}
        chosen += session.execute(oldest, named).scalars()
    return chosen
