"""Webhooks on the wire: a request's own, registered endpoints, deliveries and events."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, cast

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.parse import wrong
from api.wire.shapes import Closed, without_nul
from shared import addresses, clock, events, signatures
from shared.addresses import Allowed
from shared.errors import InvalidRequest
from shared.tables import Delivery, DeliveryAttempt, Event, WebhookEndpoint
from shared.webhooks import Terms


def _web_address(url: str) -> str:
    try:
        addresses.split(url)
    except ValueError as error:
        raise PydanticCustomError("url", "{sentence}", {"sentence": str(error)}) from None
    return url


WebAddress = Annotated[
    str, StringConstraints(max_length=addresses.LONGEST), AfterValidator(_web_address)
]
End = Literal[
    "chat.completion.completed",
    "chat.completion.failed",
    "chat.completion.cancelled",
    "chat.completion.expired",
]
BatchStep = Literal[
    "batch.in_progress",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
]
BATCH_ENDS: Final[tuple[BatchStep, ...]] = (
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
)
Type = Literal[End, BatchStep, "endpoint.disabled"]
Types = Annotated[list[Type], Field(min_length=1, max_length=len(events.TYPES), fail_fast=True)]


class Receiver(Closed):
    """Where to tell of something. What the address resolves to is asked at each delivery."""

    url: WebAddress
    secret: str | None = None
    """`whsec_…`, which signs; without one nothing is signed."""

    @model_validator(mode="after")
    def _can_sign(self) -> "Receiver":
        if self.secret is not None:
            try:
                signatures.key_of(self.secret)
            except ValueError as error:  # in these words, which do not repeat it
                raise wrong("secret", str(error)) from None
        return self


class Webhook(Receiver):
    """Where to tell of one job's end."""

    events: Annotated[list[End], Field(min_length=1, max_length=4, fail_fast=True)] | None = None
    """Which ends to tell of; None means every one."""


class BatchWebhook(Receiver):
    """Where to tell of a batch, not of its lines."""

    events: Annotated[
        list[BatchStep],
        Field(default_factory=lambda: list(BATCH_ENDS), min_length=1, max_length=5, fail_fast=True),
    ]


COLUMNS: Final = {"event_types": "events", "name": "description"}
"""Fields of an endpoint that its row has under another name."""


class EndpointChange(Closed):
    """What of an endpoint can be changed; what is absent stays."""

    url: WebAddress = ""
    event_types: Types | None = None
    """Null: every type but those that have to be asked for."""
    name: Annotated[str, StringConstraints(max_length=500), without_nul] = ""
    enabled: bool = True

    @property
    def terms(self) -> Terms:
        """What was sent, in the words of its row."""
        sent = self.model_dump(exclude_unset=True)
        return cast(Terms, {COLUMNS.get(name, name): value for name, value in sent.items()})


class EndpointCreate(EndpointChange):
    """A new endpoint."""

    url: WebAddress


class Rotation(Closed):
    """What becomes of the old secret."""

    keep_old_secret_active_for_24_hours: bool = True


class DeliveryPage(BaseModel):
    """The query of an endpoint's deliveries, newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Annotated[str, without_nul] | None = None
    """The id of the last of the page before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class EventPage(DeliveryPage):
    """The query of `GET /v1/events`, oldest first."""

    type: Annotated[str, StringConstraints(max_length=64), without_nul] | None = None
    """Only these."""


def check_receiver(url: str, allowed: Allowed, *, param: str) -> None:
    """Raises `InvalidRequest` when the URL already tells that nothing may be sent there."""
    try:
        addresses.check_url(url, allowed)
    except ValueError as error:
        raise InvalidRequest(f"Invalid '{param}': {error}.", param=param) from None


def endpoint_object(endpoint: WebhookEndpoint, *, secret: str | None = None) -> dict[str, Any]:
    """An endpoint, with its secret when that has just been made."""
    shown = {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "url": endpoint.url,
        "event_types": endpoint.events,
        "name": endpoint.description,
        "enabled": endpoint.disabled_at is None,
        "disabled_at": clock.seconds(endpoint.disabled_at),
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": clock.seconds(endpoint.failing_since),
        "created_at": clock.seconds(endpoint.created_at),
    }
    return shown if secret is None else {**shown, "signing_secret": secret}


def delivery_object(
    delivery: Delivery, kind: str, attempts: Sequence[DeliveryAttempt] = ()
) -> dict[str, Any]:
    """One event on its way, and every sending so far; a request's own webhook is no endpoint."""
    return {
        "id": delivery.id,
        "object": "webhook_endpoint.delivery",
        "endpoint_id": delivery.endpoint_id,
        "url": delivery.url,
        "event_id": delivery.event_id,
        "type": kind,
        "status": delivery.status,
        "created_at": clock.seconds(delivery.created_at),
        "next_attempt_at": clock.seconds(delivery.next_at),
        "ended_at": clock.seconds(delivery.ended_at),
        "attempts": [
            {
                "number": sending.number,
                "started_at": clock.seconds(sending.started_at),
                "milliseconds": sending.milliseconds,
                "status": sending.status,
                "error": sending.error,
            }
            for sending in attempts
        ],
    }


def event_object(event: Event) -> dict[str, Any]:
    """An event, as it is sent."""
    told: dict[str, Any] = orjson.loads(event.body)
    return told
