"""Deliveries: claim what is due, note what became of it, send it again. The only writer of them.

The attempt number is the fence. Whoever claims a delivery moves the moment of its next try on, so
that another process takes it up when the claimant was killed; it is then sent again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import desc, update
from sqlmodel import Session, col, select

from shared import clock, events, ids, webhooks
from shared.clock import database_now, due_at
from shared.errors import InvalidRequest, NotFound
from shared.tables import Delivery, DeliveryAttempt, Event, WebhookEndpoint

CLAIMED_FOR: Final = 60_000
"""Milliseconds until a claimed delivery is due again, unless it is settled."""
LOOK_AT: Final = 100
"""Due rows that a claim chooses from, and the most that are listed of one job or batch."""
GIVE_UP_AFTER: Final = timedelta(days=5)
"""For so long an endpoint may fail before it is disabled."""
GONE: Final = 410
NOBODY: Final[Mapping[str, int]] = {}


@dataclass(frozen=True, slots=True)
class Parcel:
    """A claimed delivery: all that is needed to send it."""

    delivery_id: str
    attempt: int
    account_id: str
    event_id: str
    url: str
    body: bytes
    signers: Sequence[str] = field(repr=False)
    """Secrets: in no log."""


@dataclass(frozen=True, slots=True)
class Sending:
    """What came of one sending."""

    status: int | None = None
    """The HTTP status; None: there was no answer."""
    error: str | None = None
    milliseconds: int = 0
    retry_in: int | None = None
    """Milliseconds until the next try; None: there is none."""

    @property
    def arrived(self) -> bool:
        """Whether the receiver said that it has it."""
        return self.status is not None and 200 <= self.status < 300


def due(session: Session) -> bool:
    """Whether a delivery waits to be sent."""
    return session.exec(select(col(Delivery.id)).where(*_due()).limit(1)).first() is not None


def _due() -> Sequence[Any]:
    return (
        col(Delivery.status) == "pending",
        col(Delivery.next_at) <= database_now(),
    )


def claim(
    session: Session, limit: int, *, each: int, busy: Mapping[str, int] = NOBODY
) -> list[Parcel]:
    """Take so many due deliveries, so that an account has at most `each` with those it has `busy`.

    One account's slow receiver must not keep the others waiting.
    """
    taken = Counter(busy)
    full = [account_id for account_id, many in taken.items() if many >= each]
    candidates = session.exec(
        select(col(Delivery.id), col(Delivery.account_id))
        .where(*_due(), col(Delivery.account_id).not_in(full))
        .order_by(col(Delivery.next_at))
        .limit(LOOK_AT)
        .with_for_update(skip_locked=True)
    ).all()
    chosen: list[str] = []
    for delivery_id, account_id in candidates:
        if len(chosen) < limit and taken[account_id] < each:
            chosen.append(delivery_id)
            taken[account_id] += 1
    if not chosen:
        return []
    claimed = session.execute(
        update(Delivery)
        .where(col(Delivery.id).in_(chosen), *_due())
        .values(attempt=col(Delivery.attempt) + 1, next_at=due_at(CLAIMED_FOR))
        .returning(Delivery)
        .execution_options(synchronize_session=False, populate_existing=True)
    ).scalars()
    parcels = [_parcel(session, delivery) for delivery in claimed.all()]
    session.flush()
    return [parcel for parcel in parcels if parcel is not None]


def _parcel(session: Session, delivery: Delivery) -> Parcel | None:
    url, signers = delivery.url, [delivery.secret] if delivery.secret else []
    if delivery.endpoint_id is not None:
        endpoint = session.get(WebhookEndpoint, delivery.endpoint_id)
        if endpoint is None or endpoint.disabled_at is not None:
            # It was recorded while the endpoint was being disabled.
            delivery.status, delivery.next_at = "failed", None
            delivery.attempt -= 1
            delivery.ended_at = clock.now()
            return None
        now = session.execute(select(database_now())).scalar_one()
        url, signers = endpoint.url, list(webhooks.signers(endpoint, now))
    session.add(DeliveryAttempt(delivery_id=delivery.id, number=delivery.attempt))
    return Parcel(
        delivery.id,
        delivery.attempt,
        delivery.account_id,
        delivery.event_id,
        url,
        session.get_one(Event, delivery.event_id).body,
        signers,
    )


def settle(session: Session, parcel: Parcel, sent: Sending) -> bool:
    """Write down what came of a sending; False when it was claimed again or ended since.

    Idempotent. An endpoint that is gone, or has failed for too long, is disabled.
    """
    noted = update(DeliveryAttempt).where(
        col(DeliveryAttempt.delivery_id) == parcel.delivery_id,
        col(DeliveryAttempt.number) == parcel.attempt,
    )
    _execute(
        session,
        noted.values(status=sent.status, error=sent.error, milliseconds=sent.milliseconds),
    )
    ours = update(Delivery).where(
        col(Delivery.id) == parcel.delivery_id,
        col(Delivery.status) == "pending",
        col(Delivery.attempt) == parcel.attempt,
    )
    if sent.arrived or sent.retry_in is None:
        ended = ours.values(
            status="delivered" if sent.arrived else "failed",
            next_at=None,
            ended_at=database_now(),
        )
    else:
        ended = ours.values(next_at=due_at(sent.retry_in))
    held = session.execute(
        ended.returning(col(Delivery.endpoint_id)).execution_options(synchronize_session=False)
    ).first()
    if held is not None and held[0] is not None:
        _judge(session, held[0], sent)
    return held is not None


def _judge(session: Session, endpoint_id: str, sent: Sending) -> None:
    """Keep count of how long an endpoint has failed."""
    endpoint = session.get(WebhookEndpoint, endpoint_id, populate_existing=True)
    if endpoint is None or endpoint.disabled_at is not None:
        return
    if sent.arrived:
        if endpoint.failing_since is not None:
            endpoint.failing_since = None
        return
    now = session.execute(select(database_now())).scalar_one()
    if endpoint.failing_since is None:
        endpoint.failing_since = now
    if sent.status == GONE:
        webhooks.give_up(session, endpoint, "It answered 410 Gone.")
    elif now - endpoint.failing_since > clock.span(GIVE_UP_AFTER):
        webhooks.give_up(session, endpoint, f"It has failed for {GIVE_UP_AFTER.days} days.")


def page(
    session: Session, endpoint_id: str, *, after: str | None, limit: int
) -> tuple[list[Delivery], bool]:
    """One page of an endpoint's deliveries, newest first, and whether there are more."""
    query = select(Delivery).where(col(Delivery.endpoint_id) == endpoint_id)
    if after is not None:
        if _find(session, endpoint_id, after) is None:
            raise InvalidRequest(f"No delivery {after[:64]!r} to go on after.", param="after")
        query = query.where(col(Delivery.id) < after)
    rows = session.exec(query.order_by(desc(col(Delivery.id))).limit(limit + 1)).all()
    return list(rows[:limit]), len(rows) > limit


def about(session: Session, account_id: str, subject: str) -> list[Delivery]:
    """Deliveries of what happened to a job or a batch, newest first: to whomever it was told."""
    told = select(Delivery).join(Event, col(Event.id) == col(Delivery.event_id))
    ours = told.where(col(Event.account_id) == account_id, col(Event.subject) == subject)
    return list(session.exec(ours.order_by(desc(col(Delivery.id))).limit(LOOK_AT)))


def attempts(session: Session, delivery_ids: Sequence[str]) -> dict[str, list[DeliveryAttempt]]:
    """Every sending of these deliveries, oldest first."""
    found: dict[str, list[DeliveryAttempt]] = {name: [] for name in delivery_ids}
    sendings = select(DeliveryAttempt).where(col(DeliveryAttempt.delivery_id).in_(delivery_ids))
    for sending in session.exec(sendings.order_by(col(DeliveryAttempt.number))):
        found[sending.delivery_id].append(sending)
    return found


def redeliver(session: Session, account_id: str, endpoint_id: str, delivery_id: str) -> Delivery:
    """Send a delivery's event to its endpoint once more, as a new delivery.

    Raises `NotFound`, or `InvalidRequest` when the endpoint is disabled.
    """
    endpoint = webhooks.enabled(session, account_id, endpoint_id)
    known = _find(session, endpoint.id, delivery_id)
    if known is None:
        raise NotFound(f"There is no delivery {delivery_id[:64]!r}.")
    event = session.get_one(Event, known.event_id)
    again = events.deliver(session, event, endpoint.url, endpoint_id=endpoint.id)
    session.flush()
    return again


def test(session: Session, account_id: str, endpoint_id: str) -> Delivery:
    """Send an endpoint an event that says nothing. Raises as `redeliver` does."""
    return events.test(session, webhooks.enabled(session, account_id, endpoint_id))


def _find(session: Session, endpoint_id: str, delivery_id: str) -> Delivery | None:
    known = session.get(Delivery, delivery_id) if ids.is_prefixed(delivery_id, "dlv_") else None
    return known if known is not None and known.endpoint_id == endpoint_id else None


def _execute(session: Session, statement: Any) -> None:
    session.execute(statement.execution_options(synchronize_session=False))
