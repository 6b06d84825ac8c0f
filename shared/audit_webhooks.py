"""What must be true of deliveries, looked at page by page."""

from collections.abc import Iterator
from typing import Final

from sqlalchemy import func
from sqlmodel import Session, col, select

from shared.flaws import Flaw, Page
from shared.tables import Delivery, DeliveryAttempt

AT_ONCE: Final = 200
"""Deliveries that one read looks at."""


def deliveries(session: Session, after: str) -> Page:
    """Every delivery is what its attempts say."""
    tries = select(func.count()).where(col(DeliveryAttempt.delivery_id) == col(Delivery.id))
    taken = tries.where(col(DeliveryAttempt.status).between(200, 299))
    onward = select(Delivery, tries.scalar_subquery(), taken.scalar_subquery())
    onward = onward.where(col(Delivery.id) > after).order_by(col(Delivery.id)).limit(AT_ONCE)
    page = session.exec(onward).all()
    flaws = [
        Flaw("delivery_is_its_attempts", delivery.id, sentence)
        for delivery, sent, arrived in page
        for sentence in _of_delivery(delivery, sent, arrived)
    ]
    return Page(len(page), flaws, page[-1][0].id if len(page) == AT_ONCE else None)


def _of_delivery(delivery: Delivery, sent: int, arrived: int) -> Iterator[str]:
    pending = delivery.status == "pending"
    if delivery.status not in ("pending", "delivered", "failed"):
        yield f"Its status {delivery.status!r} is none."
    if pending == (delivery.next_at is None) or pending == (delivery.ended_at is not None):
        yield (
            f"It is {delivery.status}; next_at is {delivery.next_at}, ended_at {delivery.ended_at}."
        )
    if delivery.attempt != sent:
        yield f"It counts {delivery.attempt} attempts, and has {sent}."
    if delivery.status == "delivered" and not arrived:
        yield "It is delivered, and no attempt was answered with success."
