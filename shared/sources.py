"""Who waits for their turn.

Jobs of one model in one batch, or of one model among an account's other jobs, are alike: a source.
Sources are found by leaping through an index from one to the next, so that a million jobs of one
cost no more than ten.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import sqlalchemy
from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, or_
from sqlmodel import Session, col, select

from shared import hints, jobs
from shared.batches import IN_PROGRESS
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
SHORTEST: Final = 60_000
"""Milliseconds: a batch with less time left than this is in no greater hurry."""
A_DAY: Final = 24 * 3600 * 1000
"""Milliseconds: the hurry of jobs that are in no batch."""


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
    oldest: str = field(default="", compare=False)
    """The first of them."""
    priority: int = 0
    at_once: int | None = None
    """Lines of the batch that may be in flight; None: any number."""
    expires_in: int | None = None
    """Milliseconds until the batch's deadline."""

    @property
    def hurry(self) -> float:
        """Its weight among the account's batches of one priority: the less time, the greater."""
        return A_DAY / max(SHORTEST, A_DAY if self.expires_in is None else self.expires_in)

    def beside(self, job: Job) -> bool:
        """Whether they are in the same batch, or of the same account and in none."""
        return (self.account_id, self.batch_id) == (job.account_id, job.batch_id)


def waiting(session: Session, lane: Lane, most: int) -> list[Source]:
    """Everybody who waits in a lane, each counted up to `most`."""
    found = [
        Source(account_id, None, model, waiting, oldest)
        for account_id, model, waiting, oldest in session.execute(_alike(lane), {"most": most})
    ]
    if lane == Lane.BATCH:
        found += _batched(session, list(session.execute(_alike(None), {"most": most})))
    return found


def _batched(session: Session, lines: list[Any]) -> Iterable[Source]:
    if not lines:
        return
    terms = select(Batch, (col(Batch.expires_at) - database_now()).label("left")).where(
        col(Batch.id).in_({batch_id for batch_id, *_ in lines}),
        col(Batch.status) == IN_PROGRESS,
        # What was begun before the window closed has to end, also if the batch is paused.
        or_(col(Batch.paused_at).is_(None), col(Batch.expires_at) <= database_now()),
    )
    batches = {batch.id: (batch, left) for batch, left in session.exec(terms)}
    for batch_id, model, waiting, oldest in lines:
        if batch_id in batches:
            batch, left = batches[batch_id]
            yield Source(
                *(batch.account_id, batch_id, model, waiting, oldest),
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
    oldest = least(col(Job.id), *theirs)
    found = sqlalchemy.select(pairs.c.owner, pairs.c.model, counted, oldest)
    return found.where(pairs.c.model.is_not(None))


@cache
def _oldest(lane: Lane | None) -> Select[Any]:
    """The first `:most` jobs of a source."""
    which, owner = _owned(lane)
    theirs = (owner == bindparam("owner"), col(Job.model) == bindparam("model"))
    return sqlalchemy.select(col(Job.id)).where(*which, *theirs).order_by(col(Job.id)).limit(_MOST)


@cache
def _between(lane: Lane | None) -> Select[Any]:
    """The first `:most` jobs of a source of those that came since `:first` and before `:last`."""
    since = (col(Job.id) >= bindparam("first"), col(Job.id) < bindparam("last"))
    return _oldest(lane).where(*since)


@cache
def _counted(lane: Lane | None) -> Select[Any]:
    """How many they are."""
    return sqlalchemy.select(func.count()).select_from(_between(lane).subquery())


def between(
    session: Session, lane: Lane, source: Source, first: str, last: str, *, most: int
) -> list[str]:
    """The jobs of a source that came since the one and before the other, so many at most."""
    return list(
        _asked(session, _between, lane, source, first=first, last=last, most=most).scalars()
    )


def counted(
    session: Session, lane: Lane, source: Source, first: str, last: str, *, most: int
) -> int:
    """How many they are, counted so far."""
    found = _asked(session, _counted, lane, source, first=first, last=last, most=most)
    return int(found.scalar_one())


def _asked(
    session: Session,
    statement: Callable[[Lane | None], Select[Any]],
    lane: Lane,
    source: Source,
    **named: str | int,
) -> Any:
    theirs = {"owner": source.batch_id or source.account_id, "model": source.model}
    run = session.connection().execute
    return run(statement(lane if source.batch_id is None else None), {**theirs, **named})


def next_of(session: Session, lane: Lane, places: Mapping[Source, int]) -> list[str]:
    """So many jobs of each source, the oldest first; marks nothing."""
    chosen: list[str] = []
    for source, most in places.items():
        chosen += _asked(session, _oldest, lane, source, most=most).scalars()
    return chosen
