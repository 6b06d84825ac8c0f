"""Requests that come again: by the caller's own key, or by an SDK that tries again by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import delete, func, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from shared import jobs, keys
from shared.clock import database_now, due_at
from shared.errors import IdempotencyInFlight, IdempotencyKeyReused, NotFound
from shared.jobs import Submission
from shared.keys import Bearer
from shared.tables import IdempotencyKey, Job

KEPT_FOR: Final = 24 * 3600 * 1000
"""Milliseconds a key is remembered."""
RETRIED_WITHIN: Final = 15 * 60 * 1000
"""Milliseconds after which an SDK's repetition is taken for a new request."""
DELETED: Final = "This Idempotency-Key came before, and what it led to has been deleted since."


@dataclass(frozen=True, slots=True)
class Sent:
    """How a request can be recognised when it comes again."""

    scope: str
    """Method and path, as in `POST /v1/jobs`."""
    fingerprint: bytes
    """SHA-256 of its canonical JSON."""
    key: str | None = None
    """The caller's `Idempotency-Key`."""
    by_sdk: bool = False
    """OpenAI's SDKs send a request again by themselves, without a key, and say so."""
    retried: bool = False
    """This is such a repetition."""


class Asked(NamedTuple):
    """What one request submits."""

    submissions: Sequence[Submission]
    sent: Sent | None = None
    check: Callable[[Session], None] | None = None
    """Raises what keeps out submissions that are new."""
    bearer: Bearer | None = None
    """Whoever asks, if it was not looked up for this request."""


def submit(session: Session, asked: Asked, *, again: bool = False) -> tuple[list[Job], bool]:
    """Accept all of them, or find the jobs that this very request became earlier (True).

    `again`: these submissions were tried before, and their commit went unanswered. Raises
    `IdempotencyKeyReused` when the key came with another request, `IdempotencyInFlight` while the
    same one is being accepted elsewhere, `KeyChanged` when the bearer is not what it was.
    """
    many, sent, check, bearer = asked
    if again and (landed := _rows(session, [new.job_id for new in many])):
        return landed, False
    keys.confirm(session, [bearer] if bearer else [])
    if sent is not None and sent.key is not None:
        earlier = enter(session, many[0].account_id, sent, [new.job_id for new in many])
        if earlier is not None:
            found = _rows(session, earlier)
            if not found:
                raise NotFound(DELETED)
            return found, True
    else:
        many = _marked(asked)
    if check is not None:
        check(session)
    return jobs.submit_all(session, many), False


def submit_together(session: Session, many: Sequence[Asked]) -> list[tuple[list[Job], bool]]:
    """`submit` for requests of one account; those without a key or a check share statements."""
    keys.confirm(session, [asked.bearer for asked in many if asked.bearer and _plain(asked)])
    plain = [_marked(asked) for asked in many if _plain(asked)]
    rows = iter(jobs.submit_all(session, [new for each in plain for new in each]))
    return [
        (list(islice(rows, len(asked.submissions))), False)
        if _plain(asked)
        else submit(session, asked)
        for asked in many
    ]


def _plain(asked: Asked) -> bool:
    return asked.check is None and (asked.sent is None or asked.sent.key is None)


def _marked(asked: Asked) -> Sequence[Submission]:
    """Its submissions, so that they are known again when an SDK repeats them by itself."""
    if asked.sent is None or not asked.sent.by_sdk:
        return asked.submissions
    return [replace(new, fingerprint=asked.sent.fingerprint) for new in asked.submissions]


def enter(session: Session, account_id: str, sent: Sent, new_ids: list[str]) -> list[str] | None:
    """Take the caller's key for these ids; those it stands for already, when another was first.

    Raises `IdempotencyKeyReused`, or `IdempotencyInFlight`.
    """
    place = {"account_id": account_id, "scope": sent.scope, "key": sent.key}
    old = delete(IdempotencyKey).filter_by(**place)
    session.execute(old.where(col(IdempotencyKey.created_at) < database_now() - KEPT_FOR))
    insert: Any = sqlite.insert
    if session.get_bind().dialect.name == "postgresql":
        insert = postgresql.insert
        # The insert alone would wait for the other's commit, and everybody else for us.
        name = func.hashtextextended(f"{account_id} {sent.scope} {sent.key}", 0)
        if not session.execute(select(func.pg_try_advisory_xact_lock(name))).scalar_one():
            raise IdempotencyInFlight("The same request is being accepted right now.")
    entry = insert(IdempotencyKey).values(
        **place, fingerprint=sent.fingerprint, job_ids=new_ids, created_at=database_now()
    )
    if session.execute(entry.on_conflict_do_nothing().returning(col(IdempotencyKey.key))).first():
        return None
    known = session.get_one(IdempotencyKey, (account_id, sent.scope, sent.key))
    if known.fingerprint != sent.fingerprint:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came before, with another request.", param="Idempotency-Key"
        )
    return known.job_ids


def known(session: Session, account_id: str, sent: Sent | None) -> list[Job]:
    """The jobs that this very request became earlier, by the caller's key; none when it is new."""
    return _rows(session, stands_for(session, account_id, sent))


def stands_for(session: Session, account_id: str, sent: Sent | None) -> list[str]:
    """The ids that the caller's key was taken for, by this very request; none when it is new."""
    if sent is None or sent.key is None:
        return []
    entries = select(IdempotencyKey).filter_by(
        account_id=account_id, scope=sent.scope, key=sent.key, fingerprint=sent.fingerprint
    )
    fresh = col(IdempotencyKey.created_at) >= database_now() - KEPT_FOR
    entry = session.exec(entries.where(fresh)).first()
    return entry.job_ids if entry else []


def _rows(session: Session, job_ids: list[str]) -> list[Job]:
    found = session.exec(select(Job).where(col(Job.id).in_(job_ids))).all()
    places = {job_id: place for place, job_id in enumerate(job_ids)}
    return sorted(found, key=lambda job: places[job.id])


def earlier(
    session: Session, account_id: str, key_id: str | None, sent: Sent, *, grace_ms: int
) -> tuple[list[Job], bool] | None:
    """The jobs that an SDK's request became when it was sent before, and whether nobody reads them.

    Several alike are taken newest first, those that nobody reads before the others. A job is read
    while its `attended_until` is further away than the grace, which begins when a reader leaves.
    """
    unread = or_(
        col(Job.completed_at).is_not(None),
        col(Job.attended_until).is_(None),
        col(Job.attended_until) <= due_at(grace_ms),
    )
    alike = select(Job, unread).where(
        col(Job.account_id) == account_id,
        col(Job.fingerprint) == sent.fingerprint,
        col(Job.key_id) == key_id,
        col(Job.created_at) > database_now() - RETRIED_WITHIN,
    )
    newest = alike.order_by(unread.desc(), col(Job.id).desc()).limit(1)
    found = session.exec(newest).first()
    if found is None:
        return None
    job, free = found
    whole = alike.where(col(Job.request_id) == job.request_id).order_by(col(Job.id))
    return [each for each, _ in session.exec(whole)], bool(free)
