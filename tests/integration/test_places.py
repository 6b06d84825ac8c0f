"""Places are counted from the rows of held and streamed jobs, on both databases."""

from sqlmodel import Session

from api.meters import Bounds, Want, counted, meters
from shared import jobs, places
from shared.catalog import Catalog, Model, UpstreamEntry
from shared.lifecycle import JobStatus
from shared.limits import Limits
from tests.factories import Sessions, job_in, submission, submitted
from tests.plans import explained, recorded

CATALOG = Catalog(
    upstreams={"u": UpstreamEntry(dialect="openai", base_url="http://u")},
    models={
        name: Model(upstream="u", context_window=10, max_output_tokens=5, free=True, **more)
        for name, more in {"far/*": {}, "far/away": {}, "near": {"aliases": ["here"]}}.items()
    },
)


def test_what_has_not_ended_and_is_waited_for_takes_a_place(sessions: Sessions) -> None:
    """By key and by model, as it was named; others' jobs are theirs."""
    with sessions() as session:
        for status in JobStatus:
            job_in(session, status=status)
        submitted(session, key_id="key", model="other")
        submitted(session, key_id="key", background=True)
        ours = submitted(session, key_id="key").account_id
        submitted(session, account="theirs")

        taken = places.taken(session, ours)

    assert taken == {(None, "test"): 2, ("key", "other"): 1, ("key", "test"): 1}


def test_a_limit_counts_the_places_it_is_about() -> None:
    """A key's those of its jobs; a pattern's those of all models that it makes."""
    names = ("far/a", "far/b", "far/away", "near", "here", "gone")
    taken = {(key, name): 1 for key in ("key", "other", None) for name in names}
    one = Limits(concurrency=1)
    bounds = [
        Bounds("account", "acct", one),
        Bounds("key", "key", one),
        Bounds("model", "far/*", one),
        Bounds("model", "near", one),
    ]
    readings = counted(meters("acct", dict.fromkeys(bounds, Want())), taken, CATALOG)

    assert [reading.used for reading in readings] == [18, 6, 6, 6]


def test_who_counts_for_sure_is_alone_in_it(sessions: Sessions) -> None:
    """Eight at once, with room for two."""
    with sessions() as session:
        new = [submission(session) for _ in range(8)]

    def take(number: int, session: Session) -> bool:
        free = sum(places.taken_for_sure(session, new[number].account_id).values()) < 2
        if free:
            jobs.submit(session, new[number])
        return free

    entered = sessions.at_once(*(lambda session, n=n: take(n, session) for n in range(8)))

    assert sum(entered) == 2


def test_a_crowd_in_the_background_is_not_looked_through(sessions: Sessions) -> None:
    """An index has just the jobs that count."""
    with sessions() as session, recorded(sessions.engine) as statements:
        places.taken(session, "acct")

    [(statement, parameters)] = statements
    assert "ix_jobs_in_place" in explained(sessions, statement, parameters)
