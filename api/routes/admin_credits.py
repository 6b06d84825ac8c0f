"""Credits, for administrators: grant and take them, and read any account's books."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import AdminCaller, FrontDep
from api.errors import json_response
from api.wire.admin import AccountQuery, CreditGrant, EntryPage, read_body
from api.wire.credits import balance_object, entry_object
from api.wire.objects import list_object
from api.wire.openapi import body_of, query_of
from api.wire.queries import parse_query
from shared import accounts, administration, statements
from shared.statements import Balance

router = APIRouter(prefix="/v1/admin/credits", tags=["admin"])


@router.post("", status_code=201, openapi_extra=body_of(CreditGrant))
async def grant(request: Request, front: FrontDep, caller: AdminCaller) -> Response:
    """Give an account credits, or take what is negative, down to zero."""
    asked = await read_body(CreditGrant, request)
    entry = await front.tx.by(
        asked.account_id,
        administration.grant,
        caller.actor,
        asked.account_id,
        asked.credits,
        note=asked.note,
        reference=asked.reference,
    )
    return json_response(entry_object(entry), status=201)


@router.get("", openapi_extra=query_of(AccountQuery))
async def balance(request: Request, front: FrontDep, _: AdminCaller) -> Response:
    """What an account can spend, and what is set aside for its jobs."""
    asked = parse_query(AccountQuery, request.query_params.multi_items())
    account = await front.tx.read(accounts.find, asked.account_id)
    return json_response(balance_object(Balance(account.credits, account.held)))


@router.get("/ledger", openapi_extra=query_of(EntryPage))
async def list_entries(request: Request, front: FrontDep, _: AdminCaller) -> Response:
    """Every movement of an account's credits, newest first."""
    asked = parse_query(EntryPage, request.query_params.multi_items())
    account = await front.tx.read(accounts.find, asked.account_id)
    rows, more = await front.tx.read(
        statements.entries, account.id, after=asked.after, limit=asked.limit
    )
    return json_response(list_object([entry_object(row) for row in rows], has_more=more))
