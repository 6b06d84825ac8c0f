"""`GET /v1/events`: what webhooks tell, for who would rather ask, or was away."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.wire.objects import list_object
from api.wire.openapi import query_of
from api.wire.queries import parse_query
from api.wire.webhooks import EventPage, event_object
from shared import events

router = APIRouter(prefix="/v1/events", tags=["webhooks"])


@router.get("", openapi_extra=query_of(EventPage))
async def list_events(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Oldest first, of the last 30 days. Come back with `next_after`, and none is missed.

    It lags half a minute behind: what commits late may have an earlier id than what is shown.
    """
    asked = parse_query(EventPage, request.query_params.multi_items())
    rows, more, safe = await front.tx.read(
        events.page, caller.account_id, after=asked.after, kind=asked.type, limit=asked.limit
    )
    page = list_object([event_object(row) for row in rows], has_more=more)
    return json_response({**page, "next_after": safe})
