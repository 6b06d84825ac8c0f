"""Events: the outbox of webhooks. Recorded, with their deliveries, by whatever ends a job.

An event is recorded when somebody may ask for it: the account has an endpoint, or the request
names a webhook of its own. Lines of a batch are told only to endpoints that name their types.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, exists, tuple_
from sqlmodel import Session, col, select

from shared import clock, ids
from shared.clock import database_now
from shared.errors import InvalidRequest
from shared.tables import Batch, Delivery, Event, Job, WebhookEndpoint

COMPLETION: Final = tuple(
    f"chat.completion.{status}" for status in ("completed", "failed", "cancelled", "expired")
)
BATCH: Final = tuple(
    f"batch.{status}" for status in ("in_progress", "completed", "failed", "expired", "cancelled")
)
DISABLED: Final = "endpoint.disabled"
TEST: Final = "webhook.test"
TYPES: Final = (*COMPLETION, *BATCH, DISABLED)
"""What an endpoint can ask for."""
OPT_IN: Final = frozenset({"batch.in_progress", DISABLED})
"""What it is not told unless it asks."""
KEPT_FOR: Final = timedelta(days=30)
SETTLED_AFTER: Final = 30_000
"""Milliseconds after which no event that comes before can appear any more."""


def wanted() -> ColumnElement[bool]:
    """Whether the account of the job in the statement around it has an endpoint."""
    ours = col(WebhookEndpoint.account_id) == col(Job.account_id)
    return exists().where(ours).correlate(Job)


def lines_wanted(session: Session, batch_id: str, status: str) -> bool:
    """Whether an endpoint asks to be told of each line of a batch that ends so."""
    owner = select(Batch.account_id).where(col(Batch.id) == batch_id).scalar_subquery()
    ours = select(WebhookEndpoint).where(col(WebhookEndpoint.account_id) == owner)
    kind = f"chat.completion.{status}"
    return any(_asks(endpoint, kind, unasked=False) for endpoint in session.exec(ours))


def job_ended(session: Session, job: Job) -> None:
    """Record the end of a job, in the transaction that ends it."""
    data: dict[str, Any] = {
        "id": ids.COMPLETION + job.id,
        "object": "chat.completion",
        "status": job.status,
        "custom_id": job.custom_id,
        "batch_id": job.batch_id,
        "usage": job.usage,
        "metadata": job.job_metadata,
    }
    record(
        session,
        job.account_id,
        f"chat.completion.{job.status}",
        {name: value for name, value in data.items() if value is not None},
        at=job.completed_at,
        webhook=job.webhook,
        unasked=job.batch_id is None,
    )


def record(
    session: Session,
    account_id: str,
    kind: str,
    data: Mapping[str, Any],
    *,
    at: int | None = None,
    webhook: Mapping[str, Any] | None = None,
    unasked: bool = True,
) -> Event | None:
    """Record an event about `data["id"]` and make its deliveries; None: nobody wants it.

    `webhook` is the request's own; without `unasked` only endpoints that name the type are told.
    """
    ours = select(WebhookEndpoint).where(col(WebhookEndpoint.account_id) == account_id)
    endpoints = session.exec(ours).all()
    told = [one for one in endpoints if _asks(one, kind, unasked=unasked)]
    own = webhook if webhook and kind in (webhook.get("events") or [kind]) else None
    if not (told or own or (endpoints and unasked)):
        return None
    event = _add(session, account_id, kind, data, at)
    for endpoint in told:
        if endpoint.disabled_at is None:
            deliver(session, event, endpoint.url, endpoint_id=endpoint.id)
    if own:
        deliver(session, event, own["url"], secret=own.get("secret"))
    session.flush()
    return event


def deliver(
    session: Session,
    event: Event,
    url: str,
    *,
    endpoint_id: str | None = None,
    secret: str | None = None,
) -> Delivery:
    """Put one event on its way to one URL, at once."""
    delivery = Delivery(
        id=ids.prefixed("dlv_"),
        event_id=event.id,
        account_id=event.account_id,
        endpoint_id=endpoint_id,
        url=url,
        secret=secret,
        next_at=event.created_at,
    )
    session.add(delivery)
    return delivery


def test(session: Session, endpoint: WebhookEndpoint) -> Delivery:
    """Record an event that only this endpoint is told, to try it out."""
    data = {"id": endpoint.id, "object": "webhook_endpoint", "status": "enabled"}
    event = _add(session, endpoint.account_id, TEST, data, None)
    delivery = deliver(session, event, endpoint.url, endpoint_id=endpoint.id)
    session.flush()
    return delivery


def page(
    session: Session, account_id: str, *, after: str | None, kind: str | None, limit: int
) -> tuple[list[Event], bool, str | None]:
    """One page of an account's events, oldest first; whether there are more; where it is safe to
    go on another time.

    They are in the order of the database's clock: ids are made by many. What commits late may come
    before what was seen: who goes on after the last of the page misses that, after the safe one
    does not. After one that was deleted since come all that are left. Raises `InvalidRequest` for
    a cursor that is none.
    """
    place = tuple_(col(Event.created_at), col(Event.id))
    query = select(Event).where(col(Event.account_id) == account_id)
    if after is not None:
        if not ids.is_prefixed(after, "evt_"):
            raise InvalidRequest(f"No event {after[:64]!r} to go on after.", param="after")
        query = query.where(place > _place_of(session, account_id, after))
    if kind is not None:
        query = query.where(col(Event.type) == kind)
    in_order = query.order_by(col(Event.created_at), col(Event.id))
    rows = session.exec(in_order.limit(limit + 1)).all()
    settled = _now(session) - SETTLED_AFTER
    safe = after
    for event in rows[:limit]:
        if event.created_at > settled:
            break
        safe = event.id
    return list(rows[:limit]), len(rows) > limit, safe


def _place_of(session: Session, account_id: str, event_id: str) -> tuple[int, str]:
    event = session.get(Event, event_id)
    if event is None or event.account_id != account_id:
        return 0, ""
    return event.created_at, event.id


def named(session: Session, event_ids: Sequence[str]) -> dict[str, str]:
    """The types of these events, by id."""
    types = select(Event.id, Event.type).where(col(Event.id).in_(event_ids))
    return dict(session.exec(types).all())


def _asks(endpoint: WebhookEndpoint, kind: str, *, unasked: bool) -> bool:
    if endpoint.events is None:
        return unasked and kind not in OPT_IN
    return kind in endpoint.events


def _add(
    session: Session, account_id: str, kind: str, data: Mapping[str, Any], at: int | None
) -> Event:
    at = _now(session) if at is None else at
    event_id = ids.prefixed("evt_")
    told = {
        "object": "event",
        "id": event_id,
        "type": kind,
        "created_at": clock.seconds(at),
        "data": data,
    }
    event = Event(
        id=event_id,
        account_id=account_id,
        type=kind,
        subject=data["id"],
        body=orjson.dumps(told),
        created_at=at,
    )
    session.add(event)
    session.flush()
    return event


def _now(session: Session) -> int:
    now: int = session.execute(select(database_now())).scalar_one()
    return now
