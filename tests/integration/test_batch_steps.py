"""A batch's way from its input to its files, whoever moves it on and however often."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import delete
from sqlmodel import Session, col, func, select, update

from shared import (
    accounts,
    batch_lines,
    batch_results,
    batch_steps,
    batches,
    events,
    jobs,
    leases,
    ledger,
    rendering,
    webhooks,
)
from shared.audit import examine
from shared.batch_steps import Step
from shared.lifecycle import JobStatus
from shared.outcomes import Completed, Retry
from shared.tables import Account, Batch, Event, File, Job
from tests.batches import (
    TERMS,
    accepted,
    advance,
    begun,
    late,
    let_in,
    line_of,
    measured,
    read,
    run,
    take,
)
from tests.factories import FAULT, HOUR, Sessions, spoken

COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED
DEAR = {"model": "dear"}


def statuses(session: Session, batch: Batch) -> dict[int | None, str]:
    """Each line's status."""
    lines = select(Job.line, Job.status).where(col(Job.batch_id) == batch.id)
    return dict(session.exec(lines.where(col(Job.line).is_not(None))).all())


def shown(session: Session, batch: Batch, *, completed: bool) -> bytes:
    """What its output file or its error file shows, a line at a time."""
    text, after = b"", None
    while page := batch_results.lines(session, batch.id, completed=completed, after=after, limit=1):
        text, after = text + rendering.rendered(page[0]), page[0].id
    return text


def check_files(session: Session, batch: Batch) -> list[int]:
    """How many lines its files have; they have as many bytes as they say."""
    found = []
    for file_id, completed in ((batch.output_file_id, True), (batch.error_file_id, False)):
        text = shown(session, batch, completed=completed)
        found.append(text.count(b"\n"))
        assert (file_id is not None) == bool(text)
        if file_id is not None:
            file = session.get_one(File, file_id)
            assert (file.bytes, file.lines) == (len(text), text.count(b"\n"))
    return found


def told(session: Session) -> list[str]:
    """The types of all events, oldest first."""
    return list(session.exec(select(Event.type).order_by(col(Event.id))))


def listen(session: Session, *types: str) -> None:
    """Let our account hear of these."""
    account_id = accounts.ensure(session, "ours").id
    terms = {"url": "https://app.example/", "events": list(types)}
    webhooks.create(session, account_id, terms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ends, files",
    [
        ((COMPLETED, COMPLETED, COMPLETED), [3, 0]),
        ((COMPLETED, FAILED, CANCELLED), [1, 2]),
        ((FAILED, FAILED, FAILED), [0, 3]),
    ],
)
def test_a_batch_is_completed_when_its_lines_have_ended(
    sessions: Sessions, ends: tuple[JobStatus, ...], files: list[int]
) -> None:
    """However they ended; it adds up what they used, and its files show every line once."""
    with sessions() as session:
        listen(session, *events.BATCH)
        ledger.grant(session, accounts.ensure(session, "ours").id, 10**9, note="")
        batch = accepted(session, 3, output_expires_after=60)
        assert read(session, batch, 2, **DEAR)
        assert (batch.status, batch.in_progress_at is not None) == ("in_progress", True)
        assert read(session, batch, 1, **DEAR)
        assert advance(session, batch) == []
        for number, status in enumerate(ends, 1):
            run(session, batch, number, status)

        assert advance(session, batch)[-1] == Step.END

        assert (batch.status, batch.results, batch.total) == ("completed", 3, 3)
        assert check_files(session, batch) == files
        for file in session.exec(select(File).where(col(File.batch_id) == batch.id)):
            assert file.expires_at == file.created_at + 60_000
        assert batch.ended_at is not None
        assert batch.usage is not None
        assert (batch.usage["input_tokens"], batch.usage["total_tokens"]) == (6, 15)
        cost = sum(line_of(session, batch, number).cost or 0 for number in (1, 2, 3))
        assert batch.cost == cost
        assert (cost > 0) == (ends != (FAILED, FAILED, FAILED))
        assert told(session) == ["batch.in_progress", "batch.completed"]
    assert examine(sessions.engine).flaws == []


def lived(sessions: Sessions, move: Callable[[str, Step], None]) -> Any:
    """A life with everything in it, every step of which `move` takes; how it came out."""
    with sessions() as session:
        listen(session, *events.BATCH, *events.COMPLETION)
        ledger.grant(session, accounts.ensure(session, "ours").id, 10**9, note="")
        batch = accepted(session, 5)

    def through() -> None:
        while True:
            with sessions() as session:
                due = [steps for one, steps in batch_steps.due(session, 9) if one.id == batch.id]
            if not due:
                return
            move(batch.id, due[0][0])

    through()
    with sessions() as session:
        for number, status in ((1, COMPLETED), (2, FAILED), (3, JobStatus.IN_PROGRESS)):
            run(session, batch, number, status)
        batches.cancel(session, batch.account_id, batch.id)
    through()
    with sessions() as session:
        held = line_of(session, batch, 3)
        lease = jobs.Lease(held.id, held.attempt, str(held.worker_id))
        leases.settle(session, lease, Retry(FAULT, timedelta()))
    through()
    with sessions() as session:
        batches.retry(session, batch.account_id, batch.id)
    through()
    with sessions() as session:
        run(session, batch, 4, COMPLETED)
        late(session, batch)
    through()
    with sessions() as session:
        batch = session.get_one(Batch, batch.id)
        results = batch_results.results(session, batch.id, after=0, limit=99)
        return (
            batch.status,
            check_files(session, batch),
            [(line.result_number, line.custom_id, line.status) for line in results],
            (batch.usage, batch.cost, batch.results),
            sorted(told(session)),
            session.exec(select(func.count()).select_from(Job)).one(),
        )


def test_a_step_may_be_undone_or_done_twice(sessions: Sessions) -> None:
    """Wherever a leader is killed, or two lead, the batch comes out the same."""

    def once(batch_id: str, step: Step) -> None:
        with sessions() as session:
            take(session, session.get_one(Batch, batch_id), step)

    def again(batch_id: str, step: Step) -> None:
        with sessions() as session:
            stale = session.get_one(Batch, batch_id)
            session.expunge(stale)
        with Session(sessions.engine) as session:
            take(session, session.get_one(Batch, batch_id), step)  # and is killed
        once(batch_id, step)
        with sessions() as session:
            take(session, stale, step)

    plain = lived(sessions, once)
    with sessions() as session:
        session.execute(delete(Event))
        session.execute(delete(File))
        before = session.exec(select(func.count()).select_from(Job)).one()
    *rest, count = lived(sessions, again)

    assert (*rest, count - before) == plain
    assert plain[0] == "expired"
    assert examine(sessions.engine).flaws == []


@pytest.mark.parametrize("step", [Step.READ, Step.NUMBER, Step.STOP, Step.EXPIRE, Step.REPLACE])
def test_two_leaders_do_it_once(sessions: Sessions, step: Step) -> None:
    """One holds the batch still; the other sees what is left."""
    with sessions() as session:
        batch = accepted(session, 2) if step == Step.READ else begun(session, 4)
        if step in (Step.NUMBER, Step.REPLACE):
            for number in (1, 2, 3, 4):
                run(session, batch, number, FAILED)
        if step == Step.REPLACE:
            advance(session, batch)
            batches.retry(session, batch.account_id, batch.id)
        if step == Step.STOP:
            batches.cancel(session, batch.account_id, batch.id)
        if step == Step.EXPIRE:
            late(session, batch)
            session.refresh(batch)

    def lead(session: Session) -> Any:
        mine = session.get_one(Batch, batch.id)
        session.expunge(mine)
        mine.read_lines = batch.read_lines
        return take(session, mine, step)

    did = sessions.at_once(lead, lead)

    with sessions() as session:
        batch = session.get_one(Batch, batch.id)
        lines = session.exec(select(Job).where(col(Job.line).is_not(None))).all()
        assert sorted(str(line.custom_id) for line in lines) == [
            f"line {number}" for number in range(1, batch.total + 1)
        ]
        if step == Step.READ:
            assert sorted(did) == [False, True]
        else:
            assert sum(one if isinstance(one, int) else one.many for one in did) <= 4
        advance(session, batch)
    assert examine(sessions.engine).flaws == []


def test_a_batch_ends_once(sessions: Sessions) -> None:
    """Not before its lines are those that were measured, and with one pair of files."""
    with sessions() as session:
        listen(session, *events.BATCH)
        batch = begun(session, 2)
        run(session, batch, 1, COMPLETED)
        run(session, batch, 2, FAILED)
        output = measured(session, batch)
        assert not batch_steps.end(session, batch.id, 0, *output)
        batch_steps.number(session, batch.id, 9)
        assert not batch_steps.end(session, batch.id, 0, *output)

    def end(session: Session) -> bool:
        return batch_steps.end(session, batch.id, 2, *output)

    ended = sessions.at_once(end, end)

    assert sorted(ended) == [False, True]
    with sessions() as session:
        made = select(func.count()).where(col(File.batch_id) == batch.id)
        assert session.exec(made).one() == 2
        assert told(session) == ["batch.in_progress", "batch.completed"]


def test_no_reader_misses_a_result(sessions: Sessions) -> None:
    """Lines are numbered while they end; who goes on after a number sees each of them once."""
    with sessions() as session:
        batch = begun(session, 30)
        claims = []
        for number in range(1, 31):
            run(session, batch, number, JobStatus.IN_PROGRESS)
            job = line_of(session, batch, number)
            claims.append(jobs.Lease(job.id, job.attempt, str(job.worker_id)))
        said = {lease.job_id: spoken(session.get_one(Job, lease.job_id)) for lease in claims}

    def settle(some: list[jobs.Lease]) -> None:
        for lease in some:
            with sessions() as session:
                leases.settle(session, lease, Completed(said[lease.job_id]))

    seen: list[int | None] = []
    with ThreadPoolExecutor(3) as threads:
        settling = [threads.submit(settle, claims[start::3]) for start in range(3)]
        while len(seen) < 30:
            with sessions() as session:
                batch_steps.number(session, batch.id, 4)
            with sessions() as session:
                last = seen[-1] if seen else 0
                page = batch_results.results(session, batch.id, after=last or 0, limit=5)
                seen += [line.result_number for line in page]
        for done in settling:
            done.result()

    assert seen == list(range(1, 31))
    with sessions() as session:
        session.refresh(found := session.get_one(Batch, batch.id))
        assert found.results == 30


def test_a_cancel_stops_what_waits_at_once(sessions: Sessions) -> None:
    """Lines that are not read yet get a row too; what runs has its grace, and money comes back."""
    with sessions() as session:
        account = accounts.ensure(session, "ours")
        ledger.grant(session, account.id, 10**9, note="")
        batch = accepted(session, 6)
        read(session, batch, 5, **DEAR)
        let_in(session, batch, 1)
        held = let_in(session, batch, 2).held
        run(session, batch, 1, JobStatus.IN_PROGRESS)
        assert held
        assert held * 2 == session.get_one(Account, account.id, populate_existing=True).held
        batches.cancel(session, account.id, batch.id, grace_ms=HOUR)

        advance(session, batch)

        ended = dict.fromkeys(range(2, 7), "cancelled")
        assert statuses(session, batch) == {1: "in_progress", **ended}
        assert session.get_one(Account, account.id, populate_existing=True).held == held
        assert line_of(session, batch, 1).cancel_requested_at is None
        assert (batch.status, batch.results) == ("cancelling", 5)

        batches.cancel(session, account.id, batch.id)
        [stopping] = batch_steps.stop(session, batch.id, 9).told
        assert stopping.line == 1
        assert stopping.cancel_requested_at is not None
        assert batch_steps.stop(session, batch.id, 9).told == []
        lease = jobs.Lease(stopping.id, 1, str(stopping.worker_id))
        leases.settle(session, lease, Completed(spoken(stopping)))
        advance(session, batch)
        assert (batch.status, check_files(session, batch)) == ("cancelled", [1, 5])
        assert b'"batch_cancelled"' in shown(session, batch, completed=False)
    assert examine(sessions.engine).flaws == []


@pytest.mark.parametrize("body", [DEAR, {}], ids=["dear", "free"])
def test_past_its_window_nothing_starts(sessions: Sessions, body: dict[str, str]) -> None:
    """What runs may finish, what is between two tries may go on; what was done is kept."""
    with sessions() as session:
        account = accounts.ensure(session, "ours")
        ledger.grant(session, account.id, 10**9, note="")
        batch = accepted(session, 6)
        read(session, batch, 5, **body)
        run(session, batch, 1, COMPLETED)
        for number in (2, 3):
            run(session, batch, number, JobStatus.IN_PROGRESS)
        let_in(session, batch, 4)
        tried = line_of(session, batch, 3)
        lease = jobs.Lease(tried.id, 1, str(tried.worker_id))
        leases.settle(session, lease, Retry(FAULT, timedelta()))
        late(session, batch)

        advance(session, batch)

        now = statuses(session, batch)
        assert now.pop(3) == "queued"
        assert now == {1: "completed", 2: "in_progress", **dict.fromkeys((4, 5, 6), "expired")}
        assert batch.status == "in_progress"
        runs = line_of(session, batch, 2)
        lease = jobs.Lease(runs.id, 1, str(runs.worker_id))
        leases.settle(session, lease, Completed(spoken(runs)))
        run(session, batch, 3, COMPLETED)
        advance(session, batch)
        assert (batch.status, check_files(session, batch)) == ("expired", [3, 3])
        assert session.get_one(Account, account.id, populate_existing=True).held == 0
    assert examine(sessions.engine).flaws == []


def test_what_did_not_complete_is_tried_anew_as_another_job(sessions: Sessions) -> None:
    """It takes the place of the old one, whose row stays as it ended; results go on counting."""
    with sessions() as session:
        batch = begun(session, 3)
        run(session, batch, 1, COMPLETED)
        run(session, batch, 2, FAILED)
        run(session, batch, 3, FAILED)
        advance(session, batch)
        old, gone = line_of(session, batch, 2), line_of(session, batch, 3)
        asked = jobs.content(session, old.id).request
        session.delete(jobs.content(session, gone.id))
        session.execute(update(Job).where(col(Job.id) == gone.id).values(content_deleted_at=1))

        batches.retry(session, batch.account_id, batch.id)
        advance(session, batch)

        new = line_of(session, batch, 2)
        session.refresh(old)
        assert (new.id, new.custom_id, new.status) != (old.id, "line 2", "queued")
        assert (new.custom_id, new.status, new.result_number) == ("line 2", "queued", None)
        assert orjson.loads(jobs.content(session, new.id).request) == orjson.loads(asked)
        assert (old.status, old.custom_id, old.line, old.result_number) == ("failed", None, None, 2)
        assert statuses(session, batch) == {1: "completed", 2: "queued", 3: "failed"}
        run(session, batch, 2, COMPLETED)
        advance(session, batch)
        assert (batch.status, batch.results, batch.retry_at) == ("completed", 4, None)
        assert check_files(session, batch) == [2, 1]
        results = batch_results.results(session, batch.id, after=0, limit=9)
        assert [(line.result_number, line.line) for line in results] == [(1, 1), (3, 3), (4, 2)]
    assert examine(sessions.engine).flaws == []


def test_a_line_is_tried_anew_once(sessions: Sessions) -> None:
    """Also when it fails again before the others have had their turn."""
    with sessions() as session:
        batch = begun(session, 3)
        for number in (1, 2, 3):
            run(session, batch, number, FAILED)
        advance(session, batch)
        batches.retry(session, batch.account_id, batch.id)
        assert take(session, batch, Step.REPLACE) == 2
        run(session, batch, 1, FAILED)

        advance(session, batch)

        assert statuses(session, batch) == {1: "failed", 2: "queued", 3: "queued"}
        assert (batch.results, batch.retry_at) == (4, None)


def test_long_requests_are_tried_anew_a_few_at_a_time(sessions: Sessions) -> None:
    """As many as there is memory for, and one at least; each of them once."""
    long = {"metadata": {}, "user": "x" * (batch_lines.MOST_BYTES // 2 - 1_000)}
    with sessions() as session:
        batch = begun(session, 3, body=long)
        for number in (1, 2, 3):
            run(session, batch, number, FAILED)
        advance(session, batch)
        batches.retry(session, batch.account_id, batch.id)

        sizes = []
        while failed := batch_results.to_replace(session, batch, 250):
            sizes.append(len(failed))
            anew = {
                job.id: batch_lines.plan_again(job, asked, batch, TERMS) for job, asked in failed
            }
            assert batch_steps.replace(session, batch.id, batch.retry_at, anew) == len(failed)
            assert batch_steps.replace(session, batch.id, batch.retry_at, anew) == 0

        assert sizes == [2, 1]
        assert statuses(session, batch) == dict.fromkeys((1, 2, 3), "queued")


def test_a_retry_can_be_cancelled(sessions: Sessions) -> None:
    """Lines that were not replaced yet stay as they had ended."""
    with sessions() as session:
        batch = begun(session, 3)
        for number in (1, 2, 3):
            run(session, batch, number, FAILED)
        advance(session, batch)
        batches.retry(session, batch.account_id, batch.id)
        assert take(session, batch, Step.REPLACE) == 2
        batches.cancel(session, batch.account_id, batch.id)

        advance(session, batch)

        assert statuses(session, batch) == {1: "cancelled", 2: "cancelled", 3: "failed"}
        assert (batch.status, batch.results) == ("cancelled", 5)
    assert examine(sessions.engine).flaws == []


def test_a_line_whose_model_is_gone_fails(sessions: Sessions) -> None:
    """By name, so that every custom_id has a result; the others run."""
    with sessions() as session:
        batch = accepted(session, 2)
        read(session, batch, 1, model="gone")
        read(session, batch, 1)
        assert statuses(session, batch) == {1: "failed", 2: "queued"}
        run(session, batch, 2, COMPLETED)
        advance(session, batch)

        told_of = orjson.loads(shown(session, batch, completed=False))
        assert told_of["response"]["status_code"] == 404
        assert told_of["response"]["body"]["error"]["code"] == "model_not_found"
    assert examine(sessions.engine).flaws == []


@pytest.mark.parametrize("start, status", [(0, "failed"), (1, "completed")])
def test_an_input_may_vanish(sessions: Sessions, start: int, status: str) -> None:
    """A batch has then what was read of it, and says so."""
    with sessions() as session:
        batch = accepted(session, 3)
        if start:
            read(session, batch, start)
            run(session, batch, 1, COMPLETED)
        batch_steps.cut_short(session, batch.id, start, "It is gone.")
        batch_steps.cut_short(session, batch.id, 2, "It is gone.")
        advance(session, batch)

        assert (batch.status, batch.total, batch.results) == (status, start, start)
        assert batch.errors is not None
        assert batch.errors[0]["message"] == "It is gone."
    assert examine(sessions.engine).flaws == []


def test_lines_are_told_of_to_those_who_ask(sessions: Sessions) -> None:
    """In bulk as well: endpoints that name the type, and a line's own webhook."""
    with sessions() as session:
        webhook = {"url": "https://app.example/line"}
        batch = accepted(session, 3)
        read(session, batch, 1, webhook=webhook)
        read(session, batch, 2)
        batches.cancel(session, batch.account_id, batch.id)
        batch_steps.stop(session, batch.id, 2)
        assert told(session) == ["chat.completion.cancelled"]

        listen(session, "chat.completion.cancelled")
        batch_steps.stop(session, batch.id, 2)
        assert told(session) == ["chat.completion.cancelled"] * 2
