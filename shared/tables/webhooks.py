"""Events, and how they are told."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, LargeBinary
from sqlmodel import Field, SQLModel

from shared import clock
from shared.tables.indexes import partial


class WebhookEndpoint(SQLModel, table=True):
    """Where an account wants to hear of its events."""

    __tablename__ = "webhook_endpoints"

    id: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="accounts.id", index=True)
    url: str
    events: list[str] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """Types, as in `batch.completed`; null is all that are not opt-in."""
    secrets: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    """`{"secret": "whsec_…", "until": milliseconds or null}`, the newest first."""
    description: str = ""
    failing_since: int | None = Field(default=None, sa_type=BigInteger)
    disabled_at: int | None = Field(default=None, sa_type=BigInteger)
    disabled_reason: str | None = None
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)


class Event(SQLModel, table=True):
    """Something that happened, as it is told: the outbox of webhooks. Only ever added."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_account", "account_id", "created_at", "id"),
        Index("ix_events_created", "created_at"),
        Index("ix_events_subject", "subject"),
    )

    id: str = Field(primary_key=True)
    """`evt_` and 26 letters, made by the process that recorded it."""
    account_id: str = Field(foreign_key="accounts.id")
    type: str
    subject: str
    """The id of the job or batch."""
    body: bytes = Field(sa_type=LargeBinary)
    """The JSON that is sent, again and again the same."""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    """By the database's clock: the order in which they are listed."""


class Delivery(SQLModel, table=True):
    """One event on its way to one URL."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("ix_deliveries_endpoint", "endpoint_id", "id"),
        Index("ix_deliveries_event", "event_id"),
        partial("ix_deliveries_due", "next_at", condition="status = 'pending'"),
    )

    id: str = Field(primary_key=True)
    event_id: str = Field(foreign_key="events.id", ondelete="CASCADE")
    account_id: str = Field(foreign_key="accounts.id")
    endpoint_id: str | None = None
    """None: the request named the URL itself."""
    url: str
    secret: str | None = None
    """What a request's own webhook is signed with."""
    status: str = "pending"
    """`pending`, `delivered` or `failed`."""
    attempt: int = 0
    """How often it was sent; the fence of whoever sends it."""
    next_at: int | None = Field(default=None, sa_type=BigInteger)
    """When it is sent next, if it is pending."""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    ended_at: int | None = Field(default=None, sa_type=BigInteger)


class DeliveryAttempt(SQLModel, table=True):
    """One sending of a delivery, and what came back."""

    __tablename__ = "delivery_attempts"

    delivery_id: str = Field(primary_key=True, foreign_key="deliveries.id", ondelete="CASCADE")
    number: int = Field(primary_key=True)
    started_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    milliseconds: int | None = None
    status: int | None = None
    """The HTTP status; None: there was no answer."""
    error: str | None = None
