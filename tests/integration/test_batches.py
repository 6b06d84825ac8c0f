"""Batches as their owner sees and steers them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
import sqlalchemy
from sqlmodel import Session, col, select, update

from shared import (
    accounts,
    batch_progress,
    batch_results,
    batches,
    clock,
    files,
    jobs,
    keys,
    ledger,
    webhooks,
)
from shared.errors import IdempotencyKeyReused, InvalidRequest, NotFound
from shared.idempotency import Sent
from shared.lifecycle import JobStatus
from shared.tables import Batch, Event, Job
from tests.batches import accepted, advance, begun, input_file, late, line_of, new_batch, read, run
from tests.factories import HOUR, Sessions, worker

SENT = Sent("POST /v1/batches", fingerprint=b"1")
COMPLETED, FAILED = JobStatus.COMPLETED, JobStatus.FAILED


def ended(session: Session, lines: int = 1, status: JobStatus = COMPLETED, **fields: Any) -> Batch:
    """A batch whose lines all came to this status."""
    batch = begun(session, lines, **fields)
    for number in range(1, lines + 1):
        run(session, batch, number, status)
    advance(session, batch)
    return batch


def told(session: Session) -> list[tuple[str, Any]]:
    """Events so far: type, and what is told of lines."""
    rows = session.exec(select(Event).order_by(col(Event.id)))
    return [(event.type, orjson.loads(event.body)["data"]["request_counts"]) for event in rows]


def test_a_batch_is_accepted_before_its_lines_are_read(sessions: Sessions) -> None:
    """Its owner sees how many there are; to others it does not exist."""
    with sessions() as session:
        batch = accepted(session, 3, priority=2, concurrency=7, metadata={"a": "b"})
        theirs = accounts.ensure(session, "theirs").id

        assert (batch.status, batch.total, batch.read_lines) == ("validating", 3, 0)
        assert batch.expires_at == batch.created_at + 24 * HOUR
        assert batches.find(session, batch.account_id, batch.id) is batch
        counts = batch_progress.counts(session, [batch])[batch.id]
        assert (counts.total, counts.queued, counts.completed) == (3, 3, 0)
        for account_id, batch_id in ((theirs, batch.id), (batch.account_id, "batch_none")):
            with pytest.raises(NotFound):
                batches.find(session, account_id, batch_id)


def test_a_batch_of_one_model_says_which(sessions: Sessions) -> None:
    """One of several names none."""
    with sessions() as session:
        for models, said in ((["test"], "test"), (["dear", "test"], None)):
            file = input_file(session, 2, models=models)
            assert batches.create(session, new_batch(file), None, None)[0].model == said


def test_an_input_must_be_ones_own_and_an_input(sessions: Sessions) -> None:
    """The error names the field."""
    with sessions() as session:
        theirs = input_file(session, account="theirs")
        ours = input_file(session)
        output = ended(session).output_file_id
        assert output is not None

        for file_id, error in (
            (theirs.id, NotFound),
            ("file-1", NotFound),
            (output, InvalidRequest),
        ):
            with pytest.raises(error) as refused:
                batches.create(session, new_batch(ours, input_file_id=file_id), None, None)
            assert refused.value.param == "input_file_id"


def test_a_bad_input_makes_a_failed_batch(sessions: Sessions) -> None:
    """With what is wrong with it; whoever asked for it is told."""
    errors = [{"code": "invalid_json_line", "line": 2, "message": "No.", "param": None}]
    with sessions() as session:
        webhooks.create(session, accounts.ensure(session, "ours").id, {"url": "https://a.example"})
        bad = input_file(session, 3, problem="Line 2: No.")

        batch, _ = batches.create(session, new_batch(bad), None, errors)
        bare, _ = batches.create(session, new_batch(bad), None, None)

        assert (batch.status, batch.total, batch.errors) == ("failed", 0, errors)
        assert bare.errors is not None
        assert bare.errors[0]["message"] == "Line 2: No."
        assert advance(session, batch) == []
        assert told(session)[0] == ("batch.failed", {"total": 0, "completed": 0, "failed": 0})
        with pytest.raises(InvalidRequest):
            batches.retry(session, batch.account_id, batch.id)


def test_a_request_that_comes_again_leads_to_the_same_batch(sessions: Sessions) -> None:
    """By the caller's key, by an SDK's own repetition, or when a commit went unanswered."""
    by_key = replace(SENT, key="k")
    by_sdk = replace(SENT, by_sdk=True)
    with sessions() as session:
        file = input_file(session)

        def create(sent: Sent | None, **fields: Any) -> tuple[str, bool]:
            batch, again = batches.create(session, new_batch(file, **fields), sent, None)
            return batch.id, again

        def known(sent: Sent | None) -> str | None:
            batch = batches.known(session, new_batch(file), sent)
            return None if batch is None else batch.id

        assert known(None) is None
        first, again = create(by_key)
        assert not again
        assert create(by_key) == (first, True)
        assert known(by_key) == first
        assert known(replace(by_key, key="other")) is None
        assert create(by_key, batch_id=first) == (first, False)
        with pytest.raises(IdempotencyKeyReused):
            create(replace(by_key, fingerprint=b"2"))

        second, again = create(by_sdk)
        assert not again
        assert create(replace(by_sdk, retried=True)) == (second, True)
        assert (known(replace(by_sdk, retried=True)), known(by_sdk)) == (second, None)
        assert create(replace(by_sdk, retried=True), key_id="key_2")[1] is False
        assert create(by_sdk)[1] is False
        session.execute(update(Batch).values(created_at=clock.now() - HOUR))
        assert create(replace(by_sdk, retried=True))[1] is False


def test_batches_are_listed_newest_first(sessions: Sessions) -> None:
    """By status and metadata, page by page, whatever is in a name."""
    with sessions() as session:
        names: list[dict[str, str] | None] = [None, {'"': "1"}, {'"': "1", "b": "2"}, {"b": "2"}]
        made = [accepted(session, metadata=name) for name in names]
        ours = made[0].account_id
        accepted_ids = [batch.id for batch in reversed(made)]
        batches.cancel(session, ours, made[3].id)

        def listed(**asked: Any) -> tuple[list[str], bool]:
            rows, more = batches.page(session, ours, **asked)
            return [row.id for row in rows], more

        assert listed() == (accepted_ids, False)
        assert listed(limit=3) == (accepted_ids[:3], True)
        assert listed(after=accepted_ids[1], limit=2) == (accepted_ids[2:], False)
        assert listed(status="validating") == (accepted_ids[1:], False)
        assert listed(metadata={'"': "1"}) == (accepted_ids[1:3], False)
        assert listed(metadata={"b": "2"}, limit=1) == (accepted_ids[:1], True)
        assert listed(metadata={'"': "1", "b": "1"}) == ([], False)
        with pytest.raises(InvalidRequest):
            listed(after="batch_1")


def test_a_batch_can_be_paused_and_changed(sessions: Sessions) -> None:
    """As often as one likes, and until it ends."""
    with sessions() as session:
        batch = begun(session)
        ours, batch_id = batch.account_id, batch.id

        assert batches.pause(session, ours, batch_id).paused_at is not None
        paused_at = batches.pause(session, ours, batch_id).paused_at
        assert batch_progress.status_reason(session, batch) == "paused"
        assert batches.resume(session, ours, batch_id).paused_at is None
        assert paused_at is not None
        assert batches.resume(session, ours, batch_id).paused_at is None
        changes = {"priority": 5, "concurrency": None, "metadata": {"c": "d"}}
        batches.change(session, ours, batch_id, changes=changes)
        assert (batch.priority, batch.concurrency, batch.batch_metadata) == (5, None, {"c": "d"})

        batches.cancel(session, ours, batch_id)
        for step in (batches.pause, batches.resume):
            with pytest.raises(InvalidRequest) as refused:
                step(session, ours, batch_id)
            assert refused.value.code == "batch_ended"


def test_a_cancel_may_be_repeated(sessions: Sessions) -> None:
    """It shortens the grace at most; a batch that has ended stays as it is."""
    with sessions() as session:
        batch, done = begun(session), ended(session)
        cancel: Callable[..., Batch] = batches.cancel
        ours = batch.account_id

        stop_at = cancel(session, ours, batch.id, grace_ms=HOUR).stop_at
        assert cancel(session, ours, batch.id, grace_ms=2 * HOUR).stop_at == stop_at
        assert (cancel(session, ours, batch.id).stop_at or 0) < clock.now() + 60_000
        assert cancel(session, ours, done.id).status == "completed"
        assert done.cancelling_at is None


def test_only_what_did_not_complete_can_be_retried(sessions: Sessions) -> None:
    """Once the batch has ended; its files go, for they will show something else."""
    with sessions() as session:
        running, done = begun(session), ended(session)
        failed = ended(session, status=FAILED)
        ours, file_id = failed.account_id, failed.error_file_id
        for batch, code in ((running, "batch_not_ended"), (done, "nothing_to_retry")):
            with pytest.raises(InvalidRequest) as refused:
                batches.retry(session, ours, batch.id)
            assert refused.value.code == code

        late(session, failed)
        batches.retry(session, ours, failed.id)

        assert (failed.status, failed.ended_at) == ("in_progress", None)
        assert (failed.output_file_id, failed.error_file_id) == (None, None)
        assert failed.expires_at in range(clock.now() + 23 * HOUR, clock.now() + 25 * HOUR)
        with pytest.raises(NotFound):
            files.find(session, ours, str(file_id))


def test_what_is_about_to_be_tried_anew_has_not_ended(sessions: Sessions) -> None:
    """From the moment of the retry, however long its lines take to be replaced."""
    with sessions() as session:
        batch = begun(session, 3)
        for number, status in ((1, COMPLETED), (2, FAILED), (3, FAILED)):
            run(session, batch, number, status)
        advance(session, batch)
        gone = line_of(session, batch, 3)
        session.delete(jobs.content(session, gone.id))
        session.execute(update(Job).where(col(Job.id) == gone.id).values(content_deleted_at=1))

        def seen() -> tuple[list[int], list[int], list[int]]:
            results = batch_results.results(session, batch.id, after=0, limit=9)
            lines = batch_progress.counts(session, [batch])[batch.id]
            failures = batch_progress.error_summary(session, batch)
            return (
                [line.line for line in results],
                [lines.total, lines.queued, lines.completed, lines.failed],
                [failure["count"] for failure in failures],
            )

        assert seen() == ([1, 2, 3], [3, 0, 1, 2], [2])
        batches.retry(session, batch.account_id, batch.id)
        retried = ([1, 3], [3, 1, 1, 1], [1])
        assert seen() == retried
        advance(session, batch)
        assert batch.retry_at is None
        assert seen() == retried


def test_what_a_batch_waits_for(sessions: Sessions) -> None:
    """While nothing of it runs."""
    with sessions() as session:
        batch = begun(session, body={"model": "dear"})
        assert batch_progress.status_reason(session, batch) == "waiting_for_credits"
        ledger.grant(session, batch.account_id, 10**9, note="")
        session.expire_all()
        key, _ = keys.create(session, account="ours")
        batch.key_id, key.credit_limit, key.credit_period = key.id, 10**9, "day"
        today = clock.now()
        for spent, since, reason in (
            (10**9 - 1, today, "waiting_for_key_limit"),
            (10**9 - 1, 0, "waiting_for_worker"),
            (0, today, "waiting_for_worker"),
        ):
            key.spent, key.spent_since = spent, since
            session.flush()
            assert batch_progress.status_reason(session, batch) == reason
        session.execute(update(Job).values(status_reason="as its line"))
        assert batch_progress.status_reason(session, batch) == "waiting_for_worker"
        worker(session)
        session.expire_all()
        assert batch_progress.status_reason(session, batch) == "as its line"

        run(session, batch, 1, JobStatus.IN_PROGRESS)
        assert batch_progress.status_reason(session, batch) is None
        assert batch_progress.status_reason(session, accepted(session)) is None


def test_how_fast_it_goes_and_what_goes_wrong(sessions: Sessions) -> None:
    """By the lines that ran lately; what was cancelled in bulk is no work."""
    with sessions() as session:
        batch = begun(session, 5)
        assert batch_progress.rate(session, batch) is None
        for number, status in ((1, COMPLETED), (2, FAILED), (3, FAILED)):
            run(session, batch, number, status)
        batches.cancel(session, batch.account_id, batch.id)
        advance(session, batch)

        session.execute(
            update(Job).where(col(Job.attempt) == 0).values(cancel_requested_at=clock.now())
        )
        rate = batch_progress.rate(session, batch)
        assert rate is not None
        assert rate >= 3 / 60
        assert batch_progress.error_summary(session, batch) == [
            {"code": "batch_cancelled", "count": 2, "sample": None},
            {"code": "upstream_error", "count": 2, "sample": "The model fell over."},
        ]
        idle = begun(session, 3)
        batches.cancel(session, idle.account_id, idle.id)
        advance(session, idle)
        assert idle.status == "cancelled"
        assert batch_progress.rate(session, idle) is None


def test_lines_of_a_batch_that_has_ended_are_not_counted_again(sessions: Sessions) -> None:
    """Until they are tried anew: then they are, and at the next end for good."""
    with sessions() as session:
        batch = ended(session, 2, status=FAILED)
        asked: list[str] = []
        engine = sessions.engine

        def listener(*said: Any) -> None:
            asked.append(said[2])

        sqlalchemy.event.listen(engine, "before_cursor_execute", listener)

        def seen() -> tuple[int, int, list[int]]:
            asked.clear()
            lines = batch_progress.counts(session, [batch])[batch.id]
            failures = batch_progress.error_summary(session, batch)
            return lines.completed, lines.failed, [failure["count"] for failure in failures]

        assert (seen(), asked) == ((0, 2, [2]), [])
        batches.retry(session, batch.account_id, batch.id)
        advance(session, batch)
        run(session, batch, 1, COMPLETED)
        assert seen() == (1, 0, [])
        run(session, batch, 2, FAILED)
        advance(session, batch)
        assert (seen(), asked) == ((1, 1, [1]), [])
        sqlalchemy.event.remove(engine, "before_cursor_execute", listener)


def test_a_line_goes_with_its_batch(sessions: Sessions) -> None:
    """It cannot be deleted by itself: the results would have a gap."""
    with sessions() as session:
        batch = ended(session)
        line = line_of(session, batch, 1)

        with pytest.raises(InvalidRequest) as refused:
            jobs.remove(session, batch.account_id, line.id)

        assert refused.value.code == "job_in_batch"
        assert not read(session, batch, 1)
