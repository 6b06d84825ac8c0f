"""Where a job stands: what is said of its place is what the feeder then does."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlmodel import Session, col, select

from shared import accounts, batches, clock, feeding, hints, jobs, leases, sources, standing
from shared.feeding import Flight
from shared.lately import LASTS, Forgotten, Lately
from shared.lifecycle import Lane
from shared.sources import Source
from shared.standing import Asked, Standing
from shared.tables import Account, Batch, Job
from tests.batches import input_file, line_of, new_batch, read
from tests.factories import HOUR, Sessions, claimed, ran_for, submission, submitted
from tests.plans import recorded
from workers.allotment import Allotment
from workers.turns import Turns


def batch_of(session: Session, account: str, lines: int, **fields: Any) -> Batch:
    """A batch of that account, all read."""
    new = new_batch(input_file(session, lines, account=account), **fields)
    batch, _ = batches.create(session, new, None, None)
    read(session, batch, lines)
    return batch


def loose(session: Session, account: str, jobs: int, model: str = "test") -> None:
    """Jobs of the batch lane that are in no batch."""
    for _ in range(jobs):
        submitted(session, account=account, model=model, lane=Lane.BATCH, hinted=False)


def limited(session: Session, account: str, **limits: int) -> None:
    """An account with such limits."""
    accounts.ensure(session, account).limits = limits
    session.flush()


def place(session: Session, job: Job) -> int | None:
    """How many are ahead of it."""
    found = standing.look(session, job)
    return None if found is None else found.position


def eta(session: Session, job: Job, *, capped: bool = False) -> tuple[float, float] | None:
    """When it may start."""
    found = standing.look(session, job, capped=capped)
    assert found is not None
    return found.eta


def let_in(session: Session) -> list[str]:
    """Have everybody let in one by one, as the feeder would; the order."""
    turns, of_batches, order = Turns(), dict[str, Turns](), list[str]()
    while found := sources.waiting(session, Lane.BATCH, 100):
        terms = feeding.terms(session, {source.account_id for source in found})
        allotment = Allotment(found, Flight(Counter(), Counter(), Counter()), terms, {})
        allotment.deal(1, turns, of_batches)
        chosen = sources.next_of(session, Lane.BATCH, allotment.places)
        assert hints.mark(session, chosen, after_ms=HOUR) == chosen
        order += chosen
    return order


def test_a_place_counts_who_was_let_in_and_who_is_let_in_before(sessions: Sessions) -> None:
    """Of the same lane; what runs, is planned, or is in a paused batch has no place."""
    with sessions() as session:
        made = sorted((submitted(session) for _ in range(3)), key=lambda job: job.id)
        waits = sorted((submitted(session, hinted=False) for _ in range(2)), key=lambda job: job.id)
        other = submitted(session, lane=Lane.BATCH, hinted=False)
        planned = submitted(session, hinted=False, run_at=clock.now() + HOUR)
        batch = batch_of(session, "ours", 1)
        batches.pause(session, batch.account_id, batch.id)

        assert [place(session, job) for job in (*made, *waits)] == [0, 1, 2, 3, 4]
        assert place(session, other) == 0
        assert place(session, planned) is None
        assert place(session, line_of(session, batch, 1)) is None
        assert place(session, claimed(session).job) is None


def test_many_who_ask_at_once_are_told_what_each_would_be_told(sessions: Sessions) -> None:
    """Also those whose hints are of one moment, and of those only some."""
    with sessions() as session:
        submitted(session)
        new = [submission(session) for _ in range(5)]
        _, second, third, _, fifth = jobs.submit_all(session, new)
        batch, runs = submitted(session, lane=Lane.BATCH), claimed(session).job
        asked = [third, batch, fifth, second, third]

        told = standing.look_all(session, [Asked(job) for job in asked], lately=Lately())

        assert told == [standing.look(session, job) for job in asked]
        assert [each.position for each in told] == [3, 0, 5, 2, 3]
        assert standing.look(session, runs) is None


def test_a_crowd_is_ahead_of_a_newcomer_by_one_turn(sessions: Sessions) -> None:
    """However many it is; counted no further than it matters."""
    with sessions() as session:
        big = batch_of(session, "big", 150)
        small = batch_of(session, "small", 3)

        assert [place(session, line_of(session, small, n)) for n in (1, 2, 3)] == [1, 3, 5]
        assert place(session, line_of(session, big, 1)) == 1
        assert place(session, line_of(session, big, 150)) == 149 + 3
        limited(session, "big", weight=20)
        assert [place(session, line_of(session, small, n)) for n in (1, 2, 3)] == [1, 22, 43]


def test_what_was_counted_for_one_is_good_for_another(sessions: Sessions) -> None:
    """Those who ask within a second are told what each would be told, in whatever order."""
    with sessions() as session:
        submitted(session, lane=Lane.BATCH)
        loose(session, "ours", 30)
        loose(session, "ours", 5, "another")
        limited(session, "theirs", weight=3)
        batch = batch_of(session, "theirs", 25)
        waiting = select(Job).where(col(Job.hinted_at).is_(None)).order_by(col(Job.id))
        rows = session.exec(waiting).all()
        before, rest, last = rows[20:40], [*rows[:20], *rows[40:]], line_of(session, batch, 25)
        lately = Lately()

        said = [standing.look(session, job, lately=lately) for job in (*before, *rest)]

        assert said == [standing.look(session, job) for job in (*before, *rest)]
        loose(session, "ours", 1)
        ours = session.exec(waiting).all()[-1]
        told = standing.look(session, ours, lately=lately)
        assert told is not None
        assert told.position == place(session, ours)
        assert standing.look(session, last, lately=lately) == said[rows.index(last)]


def test_those_who_ask_together_are_told_what_each_would_be(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order they ask, of whatever owner and model, and however many lie in between."""
    with sessions() as session:
        loose(session, "ours", 20)
        loose(session, "theirs", 5)
        loose(session, "ours", 5, "another")
        batch_of(session, "theirs", 25)
        rows = session.exec(select(Job).where(col(Job.hinted_at).is_(None))).all()
        asked = [*rows[::2], *rows[-1::-2]]
        each = [standing.look(session, job) for job in asked]

        for fetched in (standing.FETCHED, 3):
            monkeypatch.setattr(standing, "FETCHED", fetched)
            all_of_them = [Asked(job) for job in asked]
            assert standing.look_each(session, all_of_them, lately=Lately()) == each


def test_many_who_ask_together_take_no_more_questions_than_few(sessions: Sessions) -> None:
    """A place is told to each job in the background that is accepted."""
    with sessions() as session:
        loose(session, "ours", 40)
        rows = session.exec(select(Job)).all()
        taken = []
        for some in (rows[:2], rows):
            with recorded(sessions.engine) as asked:
                standing.look_each(session, [Asked(job) for job in some], lately=Lately())
            taken.append(len(asked))

    assert taken[0] == taken[1]


def newcomer(session: Session, model: str = "test", *, hinted: bool = False) -> Asked:
    """A job of the batch lane that has just been accepted."""
    new = submitted(session, account="ours", model=model, lane=Lane.BATCH, hinted=hinted)
    return Asked(new, new=True)


def unknown(new: Asked, lately: Lately) -> None:
    """Its place cannot be foretold."""
    with pytest.raises(Forgotten):
        standing.foretell(new, lately)


def test_a_newcomer_is_told_the_place_after_the_one_before_it(sessions: Sessions) -> None:
    """Without a question, and also among other models and accounts."""
    with sessions() as session:
        lately = Lately()
        loose(session, "ours", 7)
        loose(session, "theirs", 9)
        first = [newcomer(session), newcomer(session, "another")]
        standing.look_each(session, first, lately=lately)
        for number in range(12):
            new = newcomer(session, "test" if number % 3 else "another")
            assert standing.foretell(new, lately) == standing.look(session, new.job)


def test_a_newcomer_with_its_hint_is_told_so_too(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From so many ahead on that what changed within a second makes no difference; in its lane."""
    monkeypatch.setattr(standing, "DEEP", 5)
    now = [0.0]
    lately = Lately(lambda: now[0])

    with sessions() as session:
        leases.register(session, pid=1, slots=100, models=[])
        submitted(session)
        for _ in range(6):
            new = newcomer(session, hinted=True)
            unknown(new, lately)
            standing.look_all(session, [Asked(new.job)], lately=lately)
            unknown(new, lately)  # who knows whether that one was the last
            standing.look_all(session, [new], lately=lately)
        for ahead in range(6, 12):
            new = newcomer(session, hinted=True)
            assert standing.foretell(new, lately) == standing.look(session, new.job)
            assert standing.look(session, new.job) == Standing(ahead, (0, 0))
        now[0] = LASTS
        unknown(newcomer(session, hinted=True), lately)


def test_a_place_is_not_foretold_from_too_little(sessions: Sessions) -> None:
    """Nothing was looked for, not lately, not of this model; or others have come in between."""
    now = [0.0]
    lately = Lately(lambda: now[0])

    with sessions() as session:
        before, first = newcomer(session), newcomer(session)
        unknown(first, lately)
        standing.look_each(session, [Asked(before.job)], lately=lately)
        unknown(first, lately)  # who knows whether that one was the last
        standing.look_each(session, [first], lately=lately)
        unknown(before, lately)
        unknown(newcomer(session, "another"), lately)
        assert standing.foretell(newcomer(session), lately) is not None
        now[0] = LASTS
        unknown(newcomer(session), lately)


def test_what_is_said_of_a_place_is_what_happens(sessions: Sessions) -> None:
    """With weights, priorities, deadlines and models: a turn of everybody more or less."""
    with sessions() as session:
        loose(session, "a", 15)
        loose(session, "a", 10, "another")
        limited(session, "b", weight=3)
        batch_of(session, "b", 12)
        batch_of(session, "b", 6, priority=5)
        batch_of(session, "c", 15, window="1h", window_ms=HOUR)
        batch_of(session, "c", 15)
        loose(session, "d", 1)
        rows = session.exec(select(Job).where(col(Job.lane) == Lane.BATCH.value)).all()
        said = {job.id: place(session, job) for job in rows}

        order = let_in(session)

        assert sorted(said) == sorted(order)
        for then, job_id in enumerate(order):
            assert said[job_id] == pytest.approx(then, abs=8), (then, said[job_id])


def test_a_time_is_told_by_the_speed_of_the_lane(sessions: Sessions) -> None:
    """Unknown until something ended; at once while a slot is free."""
    with sessions() as session:
        leases.register(session, pid=1, slots=2, models=[])
        first = submitted(session)
        assert eta(session, first) == (0, 0)
        without_slots = leases.register(session, pid=1, slots=0, models=[])
        for _ in range(2):
            claimed(session, by=without_slots)
        assert eta(session, first) is None

        for _ in range(20):
            ran_for(session, 10_000, by=without_slots)
        for _ in range(39):
            last = submitted(session, hinted=False)

        found = eta(session, last)
        assert found is not None
        likely, surely = found
        assert likely == pytest.approx(40 / 2, rel=0.2)
        assert 1.2 * likely < surely < 1.6 * likely


def test_no_time_is_told_of_what_something_else_holds_back(sessions: Sessions) -> None:
    """A limit on what runs at once, of its account, batch or model; or a lack of credits."""
    with sessions() as session:
        leases.register(session, pid=1, slots=100, models=[])
        free = submitted(session, hinted=False)
        unpaid = submitted(session, hinted=False, hold_due=1, prices={})
        batch = batch_of(session, "ours", 1, concurrency=1)

        assert eta(session, free) == (0, 0)
        assert eta(session, free, capped=True) is None
        assert eta(session, unpaid) is None
        assert eta(session, line_of(session, batch, 1)) is None
        session.exec(select(Account)).one().limits = {"running": 1}
        assert eta(session, free) is None


def test_a_time_is_told_of_a_batch_that_is_still_to_come(sessions: Sessions) -> None:
    """For all of its lines, in turns with those of others; unknown for an account with a limit."""
    with sessions() as session:
        ours, theirs = (accounts.ensure(session, name).id for name in ("ours", "theirs"))
        batch = Source(ours, "new", "test", 40)
        assert standing.whole(session, batch) is None
        by = leases.register(session, pid=1, slots=100, models=[])
        for _ in range(20):
            ran_for(session, 10_000, by=by, lane=Lane.BATCH)

        alone = standing.whole(session, batch)
        loose(session, "theirs", 30)
        shared = standing.whole(session, batch)

        assert alone is not None
        assert shared is not None
        assert alone[0] == pytest.approx(40 / 2, rel=0.2)
        assert shared[0] == pytest.approx(70 / 2, rel=0.2)
        assert alone[1] > 1.2 * alone[0]
        limited(session, "ours", running=1)
        assert standing.whole(session, batch) is None
        assert standing.whole(session, replace(batch, account_id=theirs)) is not None
