"""Webhook endpoints: register, change, try out; what was sent there, and sending it again."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.front import Front
from api.wire.admin import read_body
from api.wire.objects import list_object
from api.wire.openapi import body_of, query_of
from api.wire.queries import parse_query
from api.wire.webhooks import (
    DeliveryPage,
    EndpointChange,
    EndpointCreate,
    Rotation,
    check_receiver,
    delivery_object,
    endpoint_object,
)
from shared import deliveries, events, webhooks
from shared.tables import Delivery

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"])


@router.post("", status_code=201, openapi_extra=body_of(EndpointCreate))
async def create(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Register an endpoint; `signing_secret` in the answer is its only showing."""
    asked = await read_body(EndpointCreate, request)
    check_receiver(asked.url, front.settings.allowed, param="url")
    who = caller.account_id
    row, secret = await front.tx.by(who, webhooks.create, who, asked.terms)
    return json_response(endpoint_object(row, secret=secret), status=201)


@router.get("")
async def list_endpoints(front: FrontDep, caller: AuthorizedCaller) -> Response:
    """All of the account's, oldest first; there are at most 20."""
    rows = await front.tx.read(webhooks.all_of, caller.account_id)
    return json_response(list_object([endpoint_object(row) for row in rows]))


@router.get("/{endpoint_id}")
async def retrieve(endpoint_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """One endpoint, without its secret."""
    row = await front.tx.read(webhooks.find, caller.account_id, endpoint_id)
    return json_response(endpoint_object(row))


@router.post("/{endpoint_id}", openapi_extra=body_of(EndpointChange))
async def change(
    endpoint_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Change what is sent, and nothing else; `enabled` takes up or ends its deliveries."""
    asked = await read_body(EndpointChange, request)
    if "url" in asked.model_fields_set:
        check_receiver(asked.url, front.settings.allowed, param="url")
    row = await front.tx(webhooks.change, caller.account_id, endpoint_id, asked.terms)
    return json_response(endpoint_object(row))


@router.delete("/{endpoint_id}")
async def delete(endpoint_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Forget an endpoint; what is on its way there is not sent any more."""
    await front.tx(webhooks.remove, caller.account_id, endpoint_id)
    gone = {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}
    return json_response(gone)


@router.post("/{endpoint_id}/rotate_secret", openapi_extra=body_of(Rotation))
async def rotate_secret(
    endpoint_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Make a new secret, shown here only; the old one signs as well for 24 hours, if it may."""
    keep = (await read_body(Rotation, request)).keep_old_secret_active_for_24_hours
    row, secret = await front.tx(webhooks.rotate, caller.account_id, endpoint_id, keep=keep)
    return json_response(endpoint_object(row, secret=secret))


@router.post("/{endpoint_id}/test", status_code=202)
async def test(endpoint_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Send it an event `webhook.test`."""
    return await _on_its_way(front, await front.tx(deliveries.test, caller.account_id, endpoint_id))


@router.get("/{endpoint_id}/deliveries", openapi_extra=query_of(DeliveryPage))
async def list_deliveries(
    endpoint_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """What was sent there, and what came back, newest first."""
    asked = parse_query(DeliveryPage, request.query_params.multi_items())
    await front.tx.read(webhooks.find, caller.account_id, endpoint_id)
    rows, more = await front.tx.read(
        deliveries.page, endpoint_id, after=asked.after, limit=asked.limit
    )
    return json_response(list_object(await _shown(front, rows), has_more=more))


async def deliveries_about(front: Front, account_id: str, subject: str) -> Response:
    """What was sent of a job or a batch, to endpoints and to its own webhook, newest first."""
    rows = await front.tx.read(deliveries.about, account_id, subject)
    return json_response(list_object(await _shown(front, rows)))


async def _shown(front: Front, rows: Sequence[Delivery]) -> list[dict[str, Any]]:
    sendings = await front.tx.read(deliveries.attempts, [row.id for row in rows])
    types = await front.tx.read(events.named, [row.event_id for row in rows])
    return [delivery_object(row, types[row.event_id], sendings[row.id]) for row in rows]


@router.post("/{endpoint_id}/deliveries/{delivery_id}/redeliver", status_code=202)
async def redeliver(
    endpoint_id: str, delivery_id: str, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Send the same event once more, as a delivery of its own."""
    again = await front.tx(deliveries.redeliver, caller.account_id, endpoint_id, delivery_id)
    return await _on_its_way(front, again)


async def _on_its_way(front: Front, delivery: Delivery) -> Response:
    types = await front.tx.read(events.named, [delivery.event_id])
    return json_response(delivery_object(delivery, types[delivery.event_id]), status=202)
