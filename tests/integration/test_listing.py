"""Pages of jobs: filters and cursors, and the indexes that serve them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import Session, update

from shared import (
    accounts,
    clock,
    deadlines,
    feeding,
    hints,
    jobs,
    lanes,
    leases,
    listing,
    losses,
    places,
    retention,
    sources,
    standing,
)
from shared.errors import InvalidRequest
from shared.lifecycle import JobStatus, Lane
from shared.listing import Filters
from shared.sources import Source
from shared.tables import Job
from tests.factories import HOUR, Sessions, job_in, submission, submitted, worker
from tests.plans import explained, recorded


def walk(session: Session, account: str, **filters: Any) -> list[list[str]]:
    """All pages, as ids."""
    account_id = accounts.ensure(session, account).id
    pages: list[list[str]] = []
    more = True
    while more:
        after = pages[-1][-1] if pages else None
        rows, more = listing.page(session, account_id, Filters(**filters, after=after))
        pages.append([row.id for row in rows])
    return pages


@pytest.mark.parametrize("newest_first", [True, False])
def test_the_pages_hold_every_job_once(sessions: Sessions, newest_first: bool) -> None:
    """In order, all but the last are full, and the last is never empty."""
    with sessions() as session:
        made = sorted(submitted(session).id for _ in range(21))
        submitted(session, account="theirs")

        pages = walk(session, "ours", newest_first=newest_first, limit=7)

    assert [len(page) for page in pages] == [7, 7, 7]
    assert [job_id for page in pages for job_id in page] == (made[::-1] if newest_first else made)


def test_jobs_that_come_while_pages_are_turned_do_not_disturb(sessions: Sessions) -> None:
    """Newest first, what is new lies before the first page."""
    with sessions() as session:
        made = sorted(submitted(session).id for _ in range(4))
        account_id = accounts.ensure(session, "ours").id
        first, _ = listing.page(session, account_id, Filters(limit=2))
        submitted(session, job_id="z" * 26)
        second, more = listing.page(session, account_id, Filters(limit=2, after=first[-1].id))

    assert [job.id for job in first + second] == made[::-1]
    assert not more


def test_filters_narrow_together(sessions: Sessions) -> None:
    """Status, model and every pair of metadata must hold."""
    with sessions() as session:
        plain = submitted(session, model="a").id
        labelled = submitted(session, model="a", metadata={"team": "x", "env": "prod"}).id
        other = submitted(session, model="b", metadata={"team": "x"}).id
        ended = job_in(session, JobStatus.COMPLETED, model="a", metadata={"team": "y"}).id
        submitted(session, account="theirs", model="a", metadata={"team": "x"})

        def found(**filters: Any) -> set[str]:
            return {job_id for page in walk(session, "ours", **filters) for job_id in page}

        assert found(model="a") == {plain, labelled, ended}
        assert found(statuses=["completed", "failed"]) == {ended}
        assert found(statuses=["queued"], model="a") == {plain, labelled}
        assert found(metadata={"team": "x"}) == {labelled, other}
        assert found(metadata={"team": "x", "env": "prod"}) == {labelled}
        assert found(metadata={"team": "x"}, model="b") == {other}
        assert found(metadata={"team": "prod"}) == set()
        assert found(batch_id="batch_1") == set()


def test_times_narrow_too(sessions: Sessions) -> None:
    """Both ends are open."""
    with sessions() as session:
        made = [submitted(session) for _ in range(3)]
        for number, job in enumerate(made):
            session.execute(update(Job).where(Job.id == job.id).values(created_at=1_000 + number))  # type: ignore[arg-type]

        [[only]] = walk(session, "ours", created_after=1_000, created_before=1_002)

    assert only == made[1].id


def test_a_foreign_cursor_is_refused(sessions: Sessions) -> None:
    """Also one that is another account's: it must not tell that it exists."""
    with sessions() as session:
        theirs = submitted(session, account="theirs").id
        account_id = accounts.ensure(session, "ours").id

        for cursor in (theirs, "0" * 26, "nope", ""):
            with pytest.raises(InvalidRequest) as refused:
                listing.page(session, account_id, Filters(after=cursor))
            assert refused.value.param == "after"


def test_changed_metadata_changes_what_is_found(sessions: Sessions) -> None:
    """The old pairs no longer lead to the job."""
    with sessions() as session:
        job = submitted(session, metadata={"team": "x"})
        jobs.set_metadata(session, job.account_id, job.id, {"team": "y"})

        assert walk(session, "ours", metadata={"team": "y"}) == [[job.id]]
        assert walk(session, "ours", metadata={"team": "x"}) == [[]]


QUERIES: dict[str, Callable[[Session, str, str], object]] = {
    "a page": lambda session, account, _: listing.page(session, account, Filters()),
    "a later page": lambda session, account, job: listing.page(
        session, account, Filters(after=job, newest_first=False)
    ),
    "by status": lambda session, account, _: listing.page(
        session, account, Filters(statuses=["queued"])
    ),
    "by model": lambda session, account, _: listing.page(session, account, Filters(model="test")),
    "by batch": lambda session, account, _: listing.page(session, account, Filters(batch_id="b")),
    "by metadata": lambda session, account, _: listing.page(
        session, account, Filters(metadata={"team": "x"})
    ),
    "claim": lambda session, _, job: leases.claim(session, job, "wkr_1"),
    "standing": lambda session, _, job: standing.look(session, session.get_one(Job, job)),
    "standing without a hint": lambda session, _, job: standing.look(
        session, Job(**{**session.get_one(Job, job).model_dump(), "hinted_at": None})
    ),
    "lanes": lambda session, *_: lanes.depths(session),
    "expire": lambda session, *_: deadlines.expire(session, 10),
    "lapsing": lambda session, *_: deadlines.lapsing(session, 10, 10),
    "abandoned": lambda session, _, job: deadlines.abandoned(session, [job]),
    "rescue": lambda session, *_: losses.rescue(session, 10),
    "suspects": lambda session, *_: losses.suspects(session, stale_ms=9, lease_ms=9, limit=10),
    "beat": lambda session, *_: leases.beat(session, worker(session)),
    "waiting": lambda session, *_: sources.waiting(session, Lane.BATCH, 10),
    "next": lambda session, account, _: sources.next_of(
        session, Lane.INTERACTIVE, {Source(account, None, "test", 1): 1}
    ),
    "next line": lambda session, account, _: sources.next_of(
        session, Lane.BATCH, {Source(account, "batch_1", "test", 1): 1}
    ),
    "flight": lambda session, *_: feeding.flight(session),
    "anybody": lambda session, *_: feeding.anybody(session),
    "due": lambda session, *_: feeding.due(session, 10),
    "stale": lambda session, *_: hints.stale(session, "interactive", after_ms=9, limit=10),
    "mark": lambda session, _, job: hints.mark(session, [job], after_ms=9),
    "hinted": lambda session, *_: hints.out(session, "interactive", 10),
    "prune": lambda session, *_: retention.prune(session, 0, 10),
    "anonymise": lambda session, *_: retention.anonymise(session, 0, 10),
    "forget workers": lambda session, *_: retention.forget_workers(session, 0, 10),
    "places": lambda session, account, _: places.taken_for_sure(session, account),
    "unfinished": lambda session, *_: lanes.unfinished(session),
}


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_reads_the_whole_table(sessions: Sessions, name: str) -> None:
    """Every statement that a running service repeats is served by an index of `jobs`."""
    with sessions() as session:
        jobs.submit_all(session, [submission(session, metadata={"team": "x"}) for _ in range(3)])
        job = submitted(session, expires_at=clock.now() + HOUR)
        job_id, account_id = job.id, job.account_id

    with sessions() as session, recorded(sessions.engine) as statements:
        if not sessions.is_sqlite:
            # So small a table is scanned anyway, unless that is forbidden.
            session.connection().exec_driver_sql("SET LOCAL enable_seqscan = off")
        QUERIES[name](session, account_id, job_id)

    assert statements
    for statement, parameters in statements:
        plan = explained(sessions, statement, parameters)
        assert not re.search(r"SCAN jobs(?! USING)|Seq Scan on jobs", plan), f"{statement}\n{plan}"
