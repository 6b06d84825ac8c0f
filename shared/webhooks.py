"""Webhook endpoints: where an account wants to hear of its events. The only writer of them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, TypedDict

from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import clock, events, ids, signatures
from shared.clock import database_now
from shared.errors import InvalidRequest, NotFound
from shared.tables import Account, Delivery, WebhookEndpoint

MOST: Final = 20
"""Endpoints of one account."""
OVERLAP: Final = timedelta(hours=24)
"""How long a secret goes on signing beside the one that replaced it."""
MOST_SECRETS: Final = 5


class Terms(TypedDict, total=False):
    """What can be said of an endpoint; what is absent stays as it is."""

    url: str
    events: list[str] | None
    description: str
    enabled: bool


def create(session: Session, account_id: str, terms: Terms) -> tuple[WebhookEndpoint, str]:
    """Enter an endpoint; returns its secret as well. Raises `InvalidRequest` for one too many."""
    # Held still, so that two at once cannot both be the last.
    ours = select(Account.id).where(col(Account.id) == account_id)
    session.exec(ours.with_for_update(key_share=True))
    if len(all_of(session, account_id)) >= MOST:
        raise InvalidRequest(
            f"An account has at most {MOST} webhook endpoints.", code="too_many_endpoints"
        )
    secret = signatures.new_secret()
    endpoint = WebhookEndpoint(
        id=ids.prefixed("we_"),
        account_id=account_id,
        url=terms["url"],
        secrets=[{"secret": secret, "until": None}],
    )
    _take(session, endpoint, terms)
    session.add(endpoint)
    session.flush()
    return endpoint, secret


def all_of(session: Session, account_id: str) -> list[WebhookEndpoint]:
    """The account's endpoints, oldest first."""
    ours = select(WebhookEndpoint).where(col(WebhookEndpoint.account_id) == account_id)
    return list(session.exec(ours.order_by(col(WebhookEndpoint.id))))


def find(session: Session, account_id: str, endpoint_id: str) -> WebhookEndpoint:
    """One of the account's endpoints. Raises `NotFound`."""
    known = ids.is_prefixed(endpoint_id, "we_")
    endpoint = session.get(WebhookEndpoint, endpoint_id) if known else None
    if endpoint is None or endpoint.account_id != account_id:
        raise NotFound(f"There is no webhook endpoint {endpoint_id[:64]!r}.")
    return endpoint


def change(session: Session, account_id: str, endpoint_id: str, terms: Terms) -> WebhookEndpoint:
    """Change what is given. Raises `NotFound`."""
    endpoint = find(session, account_id, endpoint_id)
    session.refresh(endpoint, with_for_update=True)
    _take(session, endpoint, terms)
    session.flush()
    return endpoint


def _take(session: Session, endpoint: WebhookEndpoint, terms: Terms) -> None:
    endpoint.url = terms.get("url", endpoint.url)
    endpoint.events = terms.get("events", endpoint.events)
    endpoint.description = terms.get("description", endpoint.description)
    enabled = terms.get("enabled")
    if enabled is False and endpoint.disabled_at is None:
        _disable(session, endpoint, "It was disabled by its owner.")
    elif enabled:
        endpoint.disabled_at = endpoint.disabled_reason = endpoint.failing_since = None


def give_up(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    """Disable an endpoint that cannot be reached, and record that as an event."""
    _disable(session, endpoint, reason)
    data = {"id": endpoint.id, "object": "webhook_endpoint", "status": "disabled"}
    events.record(session, endpoint.account_id, events.DISABLED, {**data, "reason": reason})


def _disable(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    endpoint.disabled_at, endpoint.disabled_reason = clock.now(), reason
    session.add(endpoint)
    session.flush()
    _stop_deliveries(session, endpoint.id)


def remove(session: Session, account_id: str, endpoint_id: str) -> None:
    """Delete an endpoint; what is still on its way there is not sent. Raises `NotFound`."""
    session.delete(find(session, account_id, endpoint_id))
    session.flush()
    _stop_deliveries(session, endpoint_id)


def _stop_deliveries(session: Session, endpoint_id: str) -> None:
    waiting = update(Delivery).where(
        col(Delivery.endpoint_id) == endpoint_id, col(Delivery.status) == "pending"
    )
    session.execute(
        waiting.values(status="failed", next_at=None, ended_at=database_now()).execution_options(
            synchronize_session=False
        )
    )


def rotate(
    session: Session, account_id: str, endpoint_id: str, *, keep: bool = True
) -> tuple[WebhookEndpoint, str]:
    """Give it a new secret, which is returned; the old one signs as well for `OVERLAP`.

    Without `keep` no old one does any more. Raises `NotFound`.
    """
    endpoint = find(session, account_id, endpoint_id)
    session.refresh(endpoint, with_for_update=True)
    now = session.execute(select(database_now())).scalar_one()
    until = now + clock.span(OVERLAP)
    secret = signatures.new_secret()
    kept = [{**one, "until": one["until"] or until} for one in endpoint.secrets]
    valid = [one for one in kept if keep and one["until"] > now]
    endpoint.secrets = [{"secret": secret, "until": None}, *valid][:MOST_SECRETS]
    session.flush()
    return endpoint, secret


def signers(endpoint: WebhookEndpoint, now: int) -> Sequence[str]:
    """The secrets that sign at that moment of the database's clock, the newest first."""
    secrets = endpoint.secrets
    return [one["secret"] for one in secrets if one["until"] is None or one["until"] > now]


def enabled(session: Session, account_id: str, endpoint_id: str) -> WebhookEndpoint:
    """One that can be sent to. Raises `NotFound`, or `InvalidRequest` when it is disabled."""
    endpoint = find(session, account_id, endpoint_id)
    if endpoint.disabled_at is not None:
        raise InvalidRequest("The endpoint is disabled: enable it first.", code="endpoint_disabled")
    return endpoint
