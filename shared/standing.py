"""Where a waiting job stands in its lane, and when it may start."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import sqrt
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import bindparam, func
from sqlmodel import Session, col, select

from shared import feeding, hints, lanes, rows, sources
from shared.lately import Forgotten, Lately
from shared.lifecycle import JobStatus, Lane
from shared.sources import Source
from shared.tables import Account, Batch, Job

T = TypeVar("T")

RANK_LIMIT: Final = 10_000
"""How far ahead of a job its place is counted."""
FIRST_LOOK: Final = 10
"""Jobs of each source that are counted at first; ten times as many if that does not settle it."""
FETCHED: Final = 1_000
"""Ids at most that are fetched to tell several jobs their places; beyond that each is counted."""
DEEP: Final = 100
"""Jobs ahead from which on a second more or less makes no difference to a job with a hint."""
ONE_IN_TEN: Final = 1.28
"""Standard deviations that one in ten exceeds."""


# Every job in the background is told its place when it is accepted, and to build these takes longer
# than to run them.
_HINTED: Final = (col(Job.status) == JobStatus.QUEUED.value, col(Job.lane) == bindparam("wanted"))
_EARLIER: Final = select(func.count()).select_from(
    select(col(Job.id))
    .where(*_HINTED, col(Job.hinted_at) < bindparam("moment"))
    .limit(RANK_LIMIT)
    .subquery()
)
_SAME: Final = (
    select(col(Job.id))
    .where(*_HINTED, col(Job.hinted_at) == bindparam("moment"))
    .order_by(col(Job.id))
    .limit(RANK_LIMIT)
)


@dataclass(frozen=True, slots=True)
class Standing:
    """The place of a job that waits."""

    position: int
    """Jobs that start before it, if everything stays as it is."""
    eta: tuple[float, float] | None
    """Seconds within which it starts as likely as not, and nine times in ten; None: unknown."""


class Asked(NamedTuple):
    """Whose place is asked for."""

    job: Job
    capped: bool = False
    """Only so many of its model may run at once, so a lane's speed says nothing of it."""
    new: bool = False
    """It has just been accepted, after all that this process knows of."""


class Facts:
    """What places are told by: asked of the database, unless it was `lately`."""

    def __init__(self, lately: Lately, session: Session | None = None) -> None:
        self._lately = lately
        self.session = session
        """None: nothing can be asked, and what is not known is `Forgotten`."""

    def of(self, what: Hashable, find: Callable[[Session], T]) -> T:
        """What `find` finds, or found a moment ago."""
        if self.session is None:
            found: T = self._lately.known(what)
            return found
        return self._lately.of(what, partial(find, self.session))


class Known:
    """How many jobs of a source, or of a lane's hinted ones, came before some others lately."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = []
        """Jobs in their order, and how many of the source came before each."""
        self._newest: tuple[str, int] = ("", 0)

    def note(self, job_id: str, upto: int) -> None:
        """This job is the newest of all, and so many of the source have come with it."""
        if job_id > self._newest[0]:
            self._newest = job_id, upto

    def before_the_next(self, job_id: str) -> int:
        """How many came before the newest of all; raises `Forgotten` if it is not that."""
        newest, upto = self._newest
        if not newest or job_id <= newest:
            raise Forgotten(job_id)
        return upto


def look(
    session: Session, job: Job, *, capped: bool = False, lately: Lately | None = None
) -> Standing | None:
    """Where a job stands; None when it does not wait for its turn: its batch is paused, say.

    `capped`: only so many of its model may run at once, so a lane's speed says nothing of it. What
    was counted `lately` for another job without a hint is not counted again.
    """
    if not waits(job):
        return None
    asked, lately = Asked(job, capped), lately or Lately()
    if job.hinted_at is not None:
        return look_all(session, [asked], lately=lately)[0]
    return _look(Facts(lately, session), asked)


def waits(job: Job) -> bool:
    """Whether it has a place: it waits, and not for a later moment."""
    return job.status == JobStatus.QUEUED and job.run_at is None


def foretell(asked: Asked, lately: Lately) -> Standing | None:
    """Where a new job stands, going by what was found for others `lately`.

    Raises `Forgotten` when that does not tell, or not well enough for one that starts soon.
    """
    job, facts = asked.job, Facts(lately)
    if job.hinted_at is None:
        return _look(facts, asked)
    lane = Lane(job.lane)
    known = _ahead(facts, lane)
    ahead = known.before_the_next(job.id)
    if ahead < DEEP:
        raise Forgotten(job.id)
    known.note(job.id, ahead + 1)
    return _behind(lane, min(RANK_LIMIT, ahead), facts, facts)


def _look(facts: Facts, asked: Asked) -> Standing | None:
    job = asked.job
    lane = Lane(job.lane)
    waiting = _before(facts, lane, asked)
    if waiting is None:
        return None
    out = facts.of(("hinted", lane), lambda session: hints.out(session, lane.value, RANK_LIMIT))
    ahead = min(RANK_LIMIT, out + waiting)
    held_back = asked.capped or _held_back(facts, job)
    return Standing(ahead, None if held_back else _Speed(lane, facts, facts).eta(ahead))


def look_all(session: Session, asked: Sequence[Asked], *, lately: Lately) -> list[Standing]:
    """Where jobs stand that wait and have their hint; what they have in common is counted once.

    Only the speed of their lanes may be what it was `lately`, and for those far behind free slots.
    """
    recent, fresh = Facts(lately, session), Facts(Lately(), session)

    @cache  # jobs that are accepted together have one moment
    def of(lane: str, moment: int | None) -> tuple[int, list[str]]:
        run, named = session.connection().execute, {"wanted": lane, "moment": moment}
        return run(_EARLIER, named).scalar_one(), list(run(_SAME, named).scalars())

    def standing(each: Asked) -> Standing:
        job, lane = each.job, Lane(each.job.lane)
        earlier, same = of(job.lane, job.hinted_at)
        ahead = min(RANK_LIMIT, earlier + bisect_left(same, job.id))
        if each.new:
            _ahead(recent, lane).note(job.id, ahead + 1)
        return _behind(lane, ahead, recent, fresh)

    return [standing(each) for each in asked]


def look_each(session: Session, asked: Sequence[Asked], *, lately: Lately) -> list[Standing | None]:
    """Where jobs stand that wait and have no hint: `look` for many."""
    facts = Facts(lately, session)
    owned: dict[tuple[str, str, str | None], list[Job]] = {}
    for job, *_ in asked:
        owned.setdefault((job.lane, job.account_id, job.batch_id), []).append(job)
    for jobs in owned.values():
        if len(jobs) > 1:
            _count(facts, session, Lane(jobs[0].lane), jobs)
    return [_look(facts, each) for each in asked]


def whole(session: Session, batch: Source) -> tuple[float, float] | None:
    """Seconds within which a batch that is still to come would be done, as for a `Standing`.

    By the lane's speed, in fair turns with what waits now; None when its account is limited.
    """
    lane = Lane.BATCH
    found = sources.waiting(session, lane, min(RANK_LIMIT, batch.waiting))
    terms = feeding.terms(session, {batch.account_id, *(source.account_id for source in found)})
    if batch.account_id in terms and terms[batch.account_id].running:
        return None
    weights = {account: float(limits.weight or 1) for account, limits in terms.items()}
    ahead = _in_turn(found, batch, batch.waiting - 1, weights)
    ahead += hints.out(session, lane.value, RANK_LIMIT)
    facts = Facts(Lately(), session)
    return _Speed(lane, facts, facts).spent(ahead + 1)


def _behind(lane: Lane, ahead: int, recent: Facts, fresh: Facts) -> Standing:
    """A job with a hint, behind so many others."""
    speed = _Speed(lane, pace=recent, slots=recent if ahead >= DEEP else fresh)
    return Standing(ahead, speed.eta(ahead))


def _ahead(facts: Facts, lane: Lane) -> Known:
    """How many with a hint are ahead of the newest that has one."""
    return facts.of(("ahead", lane), lambda _: Known())


def _before(facts: Facts, lane: Lane, asked: Asked) -> int | None:
    """Jobs without a hint whose turn comes before; None if the job has none."""
    job = asked.job
    mine = _beside(facts, lane, job)
    if not mine:
        return None
    own = _own(facts, lane, mine, asked)
    most = FIRST_LOOK
    while True:
        crowd = partial(_crowd, lane=lane, most=most)
        everybody, weights = facts.of(("crowd", lane, most), crowd)
        found = [source for source in everybody if not source.beside(job)]
        least = min(RANK_LIMIT, _in_turn(found, mine[0], own, weights))
        # What was not counted to its end may be any number: if that makes no difference, we know.
        more = [replace(one, waiting=RANK_LIMIT) if one.waiting == most else one for one in found]
        sure = least in (RANK_LIMIT, min(RANK_LIMIT, _in_turn(more, mine[0], own, weights)))
        if most >= RANK_LIMIT or sure:
            return least
        most *= 10


def _own(facts: Facts, lane: Lane, mine: Sequence[Source], asked: Asked) -> int:
    """Jobs of the same batch, or of the same account and in none, that came before."""
    job = asked.job
    if facts.session is not None:
        counted = [_older(facts, facts.session, lane, each, job.id) for each in mine]
    elif any(source.model == job.model for source in mine):
        counted = [_known(facts, lane, each).before_the_next(job.id) for each in mine]
    else:
        raise Forgotten(job.model)
    if asked.new:
        for source, before in zip(mine, counted, strict=True):
            _known(facts, lane, source).note(job.id, before + (source.model == job.model))
    return sum(counted)


def _beside(facts: Facts, lane: Lane, job: Job) -> list[Source]:
    """The sources of the job's batch, or of its account's jobs that are in none."""

    def find(session: Session) -> list[Source]:
        return [source for source in sources.waiting(session, lane, 1) if source.beside(job)]

    return facts.of(("beside", lane, job.account_id, job.batch_id), find)


def _crowd(session: Session, lane: Lane, most: int) -> tuple[list[Source], dict[str, float]]:
    """Everybody who waits in a lane, each counted up to `most`, and the weights of accounts."""
    found = sources.waiting(session, lane, most)
    terms = feeding.terms(session, {source.account_id for source in found})
    return found, {account: float(limits.weight or 1) for account, limits in terms.items()}


def _older(facts: Facts, session: Session, lane: Lane, source: Source, job_id: str) -> int:
    """Jobs of a source before this one, counted on from the nearest that was asked for lately."""
    known = _known(facts, lane, source).places
    at = bisect_left(known, (job_id, 0))
    if at < len(known) and known[at][0] == job_id:
        return known[at][1]
    nearest, before = known[at - 1] if at else ("", 0)
    before += sources.counted(session, lane, source, nearest, job_id, most=RANK_LIMIT)
    known.insert(at, (job_id, before))
    return before


def _count(facts: Facts, session: Session, lane: Lane, jobs: Sequence[Job]) -> None:
    """Find out for `_older` what it will be asked of these, which are beside one another.

    Jobs that were accepted together come one after the other: to fetch those in between takes one
    question, to count up to each of them as many as they are.
    """
    first, *others = sorted(job.id for job in jobs)
    for source in _beside(facts, lane, jobs[0]):
        before = _older(facts, session, lane, source, first)
        found = sources.between(session, lane, source, first, others[-1], most=FETCHED)
        if len(found) < FETCHED:
            known = _known(facts, lane, source).places
            known += [(each, before + bisect_left(found, each)) for each in others]
            known.sort()


def _known(facts: Facts, lane: Lane, source: Source) -> Known:
    alike = ("older", lane, source.account_id, source.batch_id, source.model)
    return facts.of(alike, lambda _: Known())


def _in_turn(found: Sequence[Source], mine: Source, own: int, weights: dict[str, float]) -> int:
    """What fair turns make of a job that so many of its own batch are ahead of."""
    if not found:
        return own
    batches, accounts = Counter[tuple[float, str | None]](), Counter[str]()
    urgent = 0
    for source in found:
        if source.account_id != mine.account_id:
            accounts[source.account_id] += source.waiting
        elif source.priority > mine.priority:
            urgent += source.waiting
        elif source.priority == mine.priority and source.batch_id != mine.batch_id:
            batches[source.hurry, source.batch_id] += source.waiting
    others = [(many, hurry / mine.hurry) for (hurry, _), many in batches.items()]
    own = urgent + _among(own, others)
    ours = weights.get(mine.account_id, 1.0)
    others = [(many, weights.get(name, 1.0) / ours) for name, many in accounts.items()]
    return _among(own, others)


def _among(own: int, others: Iterable[tuple[int, float]]) -> int:
    """Jobs ahead once these, each with so many waiting and so great a share, take turns too."""
    return own + sum(min(waiting, int(own * share) + 1) for waiting, share in others)


def _held_back(facts: Facts, job: Job) -> bool:
    """Whether something else than those ahead of it decides when it starts."""

    def limits(session: Session) -> tuple[bool, int]:
        account = rows.get(session, Account, job.account_id)
        assert account is not None
        batch = session.get(Batch, job.batch_id) if job.batch_id else None
        bounded = batch is not None and batch.concurrency is not None
        return bounded or bool((account.limits or {}).get("running")), account.credits

    limited, credits = facts.of(("limits", job.account_id, job.batch_id), limits)
    return limited or credits < (job.hold_due or 0)


class _Speed:
    """How soon a lane comes to a place in it, from how it did lately."""

    def __init__(self, lane: Lane, pace: Facts, slots: Facts) -> None:
        self._lane = lane
        self._pace = pace
        self._slots = slots

    @property
    def _free(self) -> int:
        return self._slots.of(
            ("free", self._lane), lambda session: feeding.free(session, self._lane)
        )

    @property
    def _drained(self) -> tuple[int, float]:
        return self._pace.of(
            ("drained", self._lane), lambda session: lanes.drained(session, self._lane)
        )

    def eta(self, ahead: int) -> tuple[float, float] | None:
        """A job for which a slot is free starts at once."""
        to_end = ahead + 1 - self._free
        return (0.0, 0.0) if to_end <= 0 else self.spent(to_end)

    def spent(self, to_end: int) -> tuple[float, float] | None:
        """What it takes to end so many."""
        ended, seconds = self._drained
        if not ended or not seconds:
            return None
        likely = to_end * seconds / ended
        # Ends come as they like: the more we have seen and the more we wait for, the surer it is.
        return likely, likely * (1 + ONE_IN_TEN * sqrt(1 / to_end + 1 / ended))
