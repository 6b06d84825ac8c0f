"""The audit log, for administrators."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import AdminCaller, FrontDep
from api.errors import json_response
from api.wire.admin import Page, audit_object
from api.wire.objects import list_object
from api.wire.openapi import query_of
from api.wire.queries import parse_query
from shared import trail

router = APIRouter(prefix="/v1/admin/audit", tags=["admin"])


@router.get("", openapi_extra=query_of(Page))
async def list_entries(request: Request, front: FrontDep, _: AdminCaller) -> Response:
    """What administrators did, newest first."""
    asked = parse_query(Page, request.query_params.multi_items())
    rows, more = await front.tx.read(trail.entries, after=asked.after, limit=asked.limit)
    return json_response(list_object([audit_object(row) for row in rows], has_more=more))
