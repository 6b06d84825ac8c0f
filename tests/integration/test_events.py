"""The outbox: an end and its event are one transaction; a delivery is in one hand at a time."""

from functools import partial
from typing import Any

import orjson
import pytest
from sqlalchemy import text
from sqlmodel import Session, func, select

from shared import accounts, clock, deliveries, events, jobs, retention, signatures, webhooks
from shared.deliveries import Parcel, Sending
from shared.errors import IllegalTransition
from shared.lifecycle import JobStatus
from shared.tables import Delivery, DeliveryAttempt, Event, Job, WebhookEndpoint
from tests.factories import HOUR, Sessions, job_in, submitted

URL = "https://example.com/hook"
ENDS = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED)
ARRIVED = Sending(204, None, 5)


def endpoint(session: Session, **terms: Any) -> WebhookEndpoint:
    """An endpoint of our account."""
    ours = accounts.ensure(session, "ours").id
    made, _ = webhooks.create(session, ours, {"url": URL, **terms})  # type: ignore[typeddict-item]
    return made


def rows(session: Session, table: type) -> int:
    """How many there are."""
    return session.exec(select(func.count()).select_from(table)).one()


def told(session: Session) -> list[str]:
    """The types of all events, in order."""
    return list(session.exec(select(Event.type).order_by(Event.id)))


def claim(session: Session, limit: int = 20, **bounds: Any) -> list[Parcel]:
    """What a worker takes."""
    return deliveries.claim(session, limit, **{"each": 10, **bounds})


def time_passes(session: Session) -> None:
    """All that waits is due."""
    session.connection().execute(text("UPDATE deliveries SET next_at = 1 WHERE next_at > 1"))
    session.expire_all()


def test_every_end_is_told_once(sessions: Sessions) -> None:
    """Whoever ends the job: a worker, a cancel, a deadline."""
    with sessions() as session:
        endpoint(session)
        ended = [job_in(session, status) for status in ENDS]

    with sessions() as session:
        assert told(session) == [f"chat.completion.{status.value}" for status in ENDS]
        for job, event in zip(ended, session.exec(select(Event).order_by(Event.id)), strict=True):
            body = orjson.loads(event.body)
            assert (body["id"], body["type"]) == (event.id, event.type)
            assert body["data"]["id"] == event.subject == f"chatcmpl-{job.id}"
            assert body["created_at"] == clock.seconds(session.get_one(Job, job.id).completed_at)
        with pytest.raises(IllegalTransition):
            jobs.move(session, ended[0].id, JobStatus.CANCELLED)
        assert rows(session, Event) == rows(session, Delivery) == len(ENDS)


def test_an_end_that_is_undone_was_never_told(sessions: Sessions) -> None:
    """The event is in the transaction or nowhere."""
    with sessions() as session:
        endpoint(session)
        job = submitted(session)

    def end_and_fail() -> None:
        with sessions() as session:
            jobs.move(session, job.id, JobStatus.CANCELLED)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        end_and_fail()

    with sessions() as session:
        assert rows(session, Event) == rows(session, Delivery) == 0


def test_what_nobody_asks_for_is_not_recorded(sessions: Sessions) -> None:
    """Without an endpoint only what the request's own webhook wants; another's does not count."""
    hook = {"url": URL, "events": ["chat.completion.failed"]}
    with sessions() as session:
        job_in(session, JobStatus.COMPLETED)
        job_in(session, JobStatus.COMPLETED, webhook=hook)
        assert told(session) == []
        job_in(session, JobStatus.FAILED, webhook={**hook, "secret": "whsec_x"})

        assert told(session) == ["chat.completion.failed"]
        [delivery] = session.exec(select(Delivery))
        assert (delivery.url, delivery.secret, delivery.endpoint_id) == (URL, "whsec_x", None)
        endpoint(session)
        job_in(session, JobStatus.COMPLETED, account="theirs")
        assert len(told(session)) == 1


def test_endpoints_hear_of_what_they_ask_for(sessions: Sessions) -> None:
    """All that is listed; a batch's lines, and the like, only by name."""
    with sessions() as session:
        everything = endpoint(session)
        failures = endpoint(session, events=["chat.completion.failed", "batch.in_progress"])
        disabled = endpoint(session, enabled=False)
        ours = everything.account_id
        job_in(session, JobStatus.COMPLETED)
        events.record(session, ours, "batch.in_progress", {"id": "batch_1", "object": "batch"})
        line = {"id": "chatcmpl-1", "object": "chat.completion"}
        for type in ("chat.completion.failed", "chat.completion.completed"):
            events.record(session, ours, type, line, unasked=False)

        sent = {
            one: [
                type
                for type, where in session.exec(
                    select(Event.type, Delivery.endpoint_id).join(Delivery).order_by(Event.id)
                )
                if where == one
            ]
            for one in (everything.id, failures.id, disabled.id)
        }
        assert len(told(session)) == 3
        assert sent[everything.id] == ["chat.completion.completed"]
        assert sent[failures.id] == ["batch.in_progress", "chat.completion.failed"]
        assert sent[disabled.id] == []


def test_two_workers_never_take_the_same_delivery(sessions: Sessions) -> None:
    """Raced; all of it is taken, once."""
    with sessions() as session:
        endpoint(session)
        for _ in range(6):
            job_in(session, JobStatus.COMPLETED)

    taken = sessions.at_once(*[partial(claim, limit=3)] * 3)

    names = [parcel.delivery_id for parcels in taken for parcel in parcels]
    assert len(names) == len(set(names))
    with sessions() as session:
        rest = [parcel.delivery_id for parcel in claim(session)]
        assert len({*names, *rest}) == 6
        assert claim(session) == []
        assert rows(session, DeliveryAttempt) == 6


def test_one_accounts_backlog_leaves_room_for_the_others(sessions: Sessions) -> None:
    """At most so many of an account at once, and none of one that has as many already."""
    hook = {"url": URL}
    with sessions() as session:
        ours = [job_in(session, JobStatus.COMPLETED, webhook=hook) for _ in range(4)]
        mine = ours[0].account_id
        job_in(session, JobStatus.COMPLETED, webhook=hook, account="theirs")

        first = claim(session, each=2)
        assert sorted(one.account_id == mine for one in first) == [False, True, True]
        assert claim(session, each=2, busy={mine: 2}) == []
        assert len(claim(session, each=2, busy={mine: 1})) == 1
        assert len(claim(session, each=2)) == 1


def test_a_sender_that_comes_back_late_changes_nothing(sessions: Sessions) -> None:
    """Its claim ran out and another sent it: the newest attempt's word counts, both are noted."""
    with sessions() as session:
        endpoint(session)
        job_in(session, JobStatus.COMPLETED)
        [first] = claim(session)
        time_passes(session)
        [second] = claim(session)
        assert (second.event_id, second.body, second.attempt) == (first.event_id, first.body, 2)

        assert not deliveries.settle(session, first, Sending(500, "late", 9, 1_000))
        assert deliveries.settle(session, second, ARRIVED)
        assert not deliveries.settle(session, second, ARRIVED)

        session.expire_all()
        [delivery] = session.exec(select(Delivery))
        assert (delivery.status, delivery.next_at) == ("delivered", None)
        noted = deliveries.attempts(session, [delivery.id])[delivery.id]
        assert [one.status for one in noted] == [500, 204]


def test_an_endpoint_that_fails_for_five_days_is_disabled(sessions: Sessions) -> None:
    """What waits for it ends with it, and an event says so to whoever asked."""
    with sessions() as session:
        made = endpoint(session)
        watching = endpoint(session, events=["endpoint.disabled"])
        for _ in range(2):
            job_in(session, JobStatus.COMPLETED)
        one, other = claim(session)
        failed = Sending(500, "It answered 500.", 5, 1_000)
        deliveries.settle(session, one, failed)
        assert session.get_one(WebhookEndpoint, made.id).failing_since is not None
        deliveries.settle(session, other, ARRIVED)
        assert session.get_one(WebhookEndpoint, made.id).failing_since is None
        session.flush()
        made.failing_since = clock.now() - 5 * 24 * HOUR - 60_000
        job_in(session, JobStatus.COMPLETED)
        session.flush()

        [third] = claim(session)
        deliveries.settle(session, third, failed)

        session.expire_all()
        assert session.get_one(WebhookEndpoint, made.id).disabled_at is not None
        assert told(session)[-1] == "endpoint.disabled"
        [about] = claim(session)
        assert orjson.loads(about.body)["data"]["id"] == made.id
        assert session.get_one(Delivery, about.delivery_id).endpoint_id == watching.id
        time_passes(session)
        assert [each.delivery_id for each in claim(session)] == [about.delivery_id]


def test_a_secret_that_was_replaced_signs_for_a_day(sessions: Sessions) -> None:
    """By the database's clock, and beside every newer one."""
    with sessions() as session:
        made = endpoint(session)
        _, second = webhooks.rotate(session, made.account_id, made.id)
        _, third = webhooks.rotate(session, made.account_id, made.id)
        now = clock.now()

        assert len(webhooks.signers(made, now)) == 3
        assert list(webhooks.signers(made, now + 25 * HOUR)) == [third]
        assert webhooks.signers(made, now)[1] == second
        assert all(len(signatures.key_of(each)) == 32 for each in webhooks.signers(made, now))


def test_the_feed_goes_on_where_nothing_can_be_missed(sessions: Sessions) -> None:
    """Pages follow one another; `next_after` waits for what may still commit before it."""
    with sessions() as session:
        made = endpoint(session)
        for _ in range(3):
            job_in(session, JobStatus.COMPLETED)
        session.connection().execute(
            text("UPDATE events SET created_at = created_at - 60000 WHERE id = "
                 "(SELECT min(id) FROM events)")
        )  # fmt: skip
        session.expire_all()
        page = partial(events.page, session, made.account_id, kind=None)

        first, more, safe = page(after=None, limit=2)
        rest, no_more, _ = page(after=first[-1].id, limit=2)
        assert (len(first), more, len(rest), no_more) == (2, True, 1, False)
        assert safe == first[0].id
        assert page(after=safe, limit=2)[2] == safe


def test_no_event_is_passed_over_though_clocks_differ(sessions: Sessions) -> None:
    """Ids are made by many processes, the order by the one database."""
    with sessions() as session:
        ours = accounts.ensure(session, "ours").id
        names = [f"evt_{letter * 26}" for letter in "3z01"]
        begun = clock.now() - HOUR

        def record(number: int) -> None:
            at = begun + number // 2  # two of them in the same millisecond
            told = Event(
                id=names[number], account_id=ours, type="t", subject="s", body=b"", created_at=at
            )
            session.add(told)
            session.flush()

        seen: list[str] = []
        after = None
        for number in range(4):
            record(number)
            found, more, after = events.page(session, ours, after=after, kind=None, limit=9)
            assert not more
            seen += [event.id for event in found]

        assert seen == names
        theirs = accounts.ensure(session, "theirs").id
        assert events.page(session, theirs, after=names[0], kind=None, limit=9)[0] == []
        session.delete(session.get_one(Event, names[0]))
        left, _, _ = events.page(session, ours, after=names[0], kind=None, limit=9)
        assert [event.id for event in left] == names[1:]


def test_old_events_are_forgotten_with_their_deliveries(sessions: Sessions) -> None:
    """In batches, the oldest first."""
    with sessions() as session:
        endpoint(session)
        for _ in range(3):
            job_in(session, JobStatus.COMPLETED)
        claim(session)
        session.connection().execute(
            text(f"UPDATE events SET created_at = created_at - {2 * HOUR}")
        )
        job_in(session, JobStatus.COMPLETED)

        gone = [len(retention.forget_events(session, HOUR, 2)) for _ in range(3)]

        assert gone == [2, 1, 0]
        assert rows(session, Event) == rows(session, Delivery) == 1
        assert rows(session, DeliveryAttempt) == 0
