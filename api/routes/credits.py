"""Credits: what is left, where it went, what it was used for."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.wire.credits import (
    LedgerFilters,
    UsageFilters,
    balance_object,
    entry_object,
    usage_object,
)
from api.wire.objects import list_object
from api.wire.openapi import query_of
from api.wire.queries import parse_query
from shared import clock, statements
from shared.statements import DAY

router = APIRouter(tags=["credits"])

SHOWN_DAYS = 30
"""How far back usage goes unless the query says more."""


@router.get("/v1/credits/balance")
@router.get("/api/v1/public/credits/balance")
async def balance(front: FrontDep, caller: AuthorizedCaller) -> Response:
    """What can still be spent, and what is set aside for jobs that have not ended."""
    return json_response(balance_object(await front.tx.read(statements.balance, caller.account_id)))


@router.get("/v1/credits/ledger", openapi_extra=query_of(LedgerFilters))
async def list_entries(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Every movement of credits, newest first."""
    asked = parse_query(LedgerFilters, request.query_params.multi_items())
    rows, more = await front.tx.read(
        statements.entries, caller.account_id, after=asked.after, limit=asked.limit
    )
    return json_response(list_object([entry_object(row) for row in rows], has_more=more))


@router.get("/v1/usage", openapi_extra=query_of(UsageFilters))
async def usage(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Jobs, tokens and credits of what has ended, by `day`, `model` or `key`, or several."""
    asked = parse_query(UsageFilters, request.query_params.multi_items())
    until = clock.milliseconds(asked.end_time) or clock.now() + DAY
    since = clock.milliseconds(asked.start_time)
    since = until - (SHOWN_DAYS + 1) * DAY if since is None else since
    rows = await front.tx.read(
        statements.usage, caller.account_id, since=since, until=until, by=asked.group_by
    )
    return json_response(list_object([usage_object(row) for row in rows]))
