"""Requests that come again, on both databases."""

import hashlib
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, func, select

from shared import idempotency, jobs, keys
from shared.errors import IdempotencyInFlight, IdempotencyKeyReused, NotFound
from shared.idempotency import Asked, Sent, submit_together
from shared.keys import Bearer, KeyChanged
from shared.lifecycle import JobStatus
from shared.tables import Account, IdempotencyKey, Job
from tests.factories import HOUR, Sessions, job_in, submission

GRACE = 30_000
PRINT = hashlib.sha256(b"{}").digest()
KEYED = Sent("POST /v1/jobs", PRINT, key="k1")
FIRST = Sent("POST /v1/chat/completions", PRINT, by_sdk=True)


def send(session: Session, sent: Sent = KEYED, *, jobs: int = 1, **fields: Any) -> list[str]:
    """The ids of the jobs a request led to; those of a repetition end with a star."""
    many = [submission(session, **fields) for _ in range(jobs)]
    rows, again = idempotency.submit(session, Asked(many, sent))
    return [row.id + "*" * again for row in rows]


def count(session: Session) -> int:
    """How many jobs there are."""
    return session.exec(select(func.count()).select_from(Job)).one()


def test_a_key_leads_to_the_same_jobs(sessions: Sessions) -> None:
    """In the order in which they were submitted."""
    with sessions() as session:
        first = send(session, jobs=3)
    with sessions() as session:
        again = send(session, jobs=3)

        assert again == [job_id + "*" for job_id in first]
        assert count(session) == 3


def test_a_key_cannot_be_used_for_something_else(sessions: Sessions) -> None:
    """The error names the header, and the first job is untouched."""
    with sessions() as session:
        send(session)

    with pytest.raises(IdempotencyKeyReused) as refused, sessions() as session:
        send(session, Sent(KEYED.scope, b"other", key="k1"))

    assert (refused.value.status, refused.value.param) == (422, "Idempotency-Key")


def test_keys_of_others_and_of_other_paths_are_other_keys(sessions: Sessions) -> None:
    """A key says something only to its own account and its own path."""
    with sessions() as session:
        sent = [
            send(session),
            send(session, account="theirs"),
            send(session, Sent("POST /v1/chat/completions", PRINT, key="k1")),
        ]

        assert len({job_id for job_ids in sent for job_id in job_ids}) == count(session) == 3


def test_two_at_once_are_one(sessions: Sessions) -> None:
    """One creates; the other attaches, or is told to look again, and does not wait meanwhile."""

    def look(session: Session) -> str:
        try:
            return send(session)[0]
        except IdempotencyInFlight:
            return "in flight"

    with sessions() as session:
        submission(session)  # the account

    found = sorted(sessions.at_once(look, look), key=len)
    with sessions() as session:
        again = look(session)

        assert found == [again.strip("*"), again] or "in flight" in found
        assert again.endswith("*")
        assert count(session) == 1


def test_a_key_is_forgotten_after_a_day(sessions: Sessions) -> None:
    """Then the same request is a new one."""
    with sessions() as session:
        [first] = send(session)
        day = {"day": 24 * HOUR}
        session.connection().execute(
            text("UPDATE idempotency_keys SET created_at = created_at - :day - 1"), day
        )
    with sessions() as session:
        [second] = send(session)

        assert second.strip("*") != first
        assert count(session) == 2
        assert session.exec(select(IdempotencyKey.job_ids)).all() == [[second]]


def test_a_refused_request_keeps_no_key(sessions: Sessions) -> None:
    """What failed may be sent again, corrected, under the same key."""
    with sessions() as session:
        twice = [submission(session)] * 2

    with pytest.raises(IntegrityError), sessions() as session:
        idempotency.submit(session, Asked(twice, KEYED))
    with sessions() as session:
        send(session, Sent(KEYED.scope, b"corrected", key="k1"))

        assert count(session) == 1


def test_the_key_of_a_deleted_job_makes_no_second_one(sessions: Sessions) -> None:
    """Whoever repeats it learns that the job was deleted; nothing runs, and costs, again."""
    with sessions() as session:
        send(session)
        job = session.exec(select(Job)).one()
        jobs.cancel(session, job.account_id, job.id)
        jobs.remove(session, job.account_id, job.id)

    with pytest.raises(NotFound, match="deleted"), sessions() as session:
        send(session)


def test_a_doubtful_commit_is_found_again(sessions: Sessions) -> None:
    """The ids were ours before: if they are there, it took place."""
    with sessions() as session:
        many = [submission(session) for _ in range(2)]
        idempotency.submit(session, Asked(many))
    with sessions() as session:
        rows, again = idempotency.submit(session, Asked(many), again=True)
        fresh, _ = idempotency.submit(session, Asked([submission(session)]), again=True)

        assert [row.id for row in rows] == [new.job_id for new in many]
        assert again is False
        assert count(session) == 2 + len(fresh)


@pytest.mark.parametrize("sent", [None, KEYED])
def test_a_request_by_a_key_that_was_changed_leaves_nothing(
    sessions: Sessions, sent: Sent | None
) -> None:
    """Alone or with others; what has landed before the change is still found."""
    with sessions() as session:
        key, _ = keys.create(session, account="ours")
        bearer = Bearer.of(key, session.get_one(Account, key.account_id))
        landed = Asked([submission(session)], None, None, bearer)
        submit_together(session, [landed])
    with sessions() as session:
        keys.revoke(session, key.id)

    for submit in (idempotency.submit, lambda session, asked: submit_together(session, [asked])):
        with pytest.raises(KeyChanged), sessions() as session:
            submit(session, Asked([submission(session)], sent, None, bearer))
    with sessions() as session:
        [job], again = idempotency.submit(session, landed, again=True)
        assert (job.id, again) == (landed.submissions[0].job_id, False)
        assert count(session) == 1


def found(session: Session, account_id: str, key_id: str | None = None) -> tuple[str, bool] | None:
    """What an SDK's repetition leads to."""
    seen = idempotency.earlier(session, account_id, key_id, FIRST, grace_ms=GRACE)
    return None if seen is None else (seen[0][0].id, seen[1])


def test_an_sdk_finds_the_job_nobody_reads(sessions: Sessions) -> None:
    """A job that is read belongs to another connection; one that was left may be taken up."""
    with sessions() as session:
        [read] = send(session, FIRST, attended_for=GRACE + 20_000)
        job = session.get_one(Job, read)
        assert found(session, job.account_id) == (read, False)

        [left] = send(session, FIRST, attended_for=GRACE + 20_000, request_id="req_2")
        jobs.attend(session, [left], GRACE)
        send(session, FIRST, attended_for=GRACE + 20_000, request_id="req_3")
        assert found(session, job.account_id) == (left, True)


def test_an_sdk_finds_what_has_ended(sessions: Sessions) -> None:
    """Its answer may be what was lost on the way."""
    with sessions() as session:
        fields = {"fingerprint": PRINT, "attended_for": GRACE + 20_000}
        job = job_in(session, JobStatus.COMPLETED, **fields)
        assert found(session, job.account_id) == (job.id, True)


@pytest.mark.parametrize("other", ["key", "account", "age", "request"])
def test_an_sdk_finds_nothing_else(sessions: Sessions, other: str) -> None:
    """Not another key's, not another account's, not an old one, not another request's."""
    with sessions() as session:
        [job_id] = send(session, FIRST, key_id="key_1")
        account_id = session.get_one(Job, job_id).account_id
        look = partial(found, session, account_id, "key_1")
        assert look() == (job_id, True)
        changes = {
            "key": "key_id = 'key_2'",
            "account": f"account_id = '{submission(session, account='theirs').account_id}'",
            "age": "created_at = created_at - 16 * 60000",
            "request": "fingerprint = NULL",
        }
        session.connection().execute(text(f"UPDATE jobs SET {changes[other]}"))

        assert look() is None
