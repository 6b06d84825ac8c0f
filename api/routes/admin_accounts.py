"""Accounts, for administrators: make, limit, disable them."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import AdminCaller, FrontDep
from api.errors import json_response
from api.wire.admin import (
    AccountChange,
    AccountCreate,
    Page,
    account_object,
    plain,
    read_body,
)
from api.wire.objects import list_object
from api.wire.openapi import body_of, query_of
from api.wire.queries import parse_query
from shared import accounts, administration

router = APIRouter(prefix="/v1/admin/accounts", tags=["admin"])


@router.post("", status_code=201, openapi_extra=body_of(AccountCreate))
async def create(request: Request, front: FrontDep, caller: AdminCaller) -> Response:
    """Make an account."""
    asked = await read_body(AccountCreate, request)
    made = await front.tx(
        administration.create_account, caller.actor, name=asked.name, limits=plain(asked.limits)
    )
    return json_response(account_object(made), status=201)


@router.get("", openapi_extra=query_of(Page))
async def list_accounts(request: Request, front: FrontDep, _: AdminCaller) -> Response:
    """All accounts, newest first."""
    asked = parse_query(Page, request.query_params.multi_items())
    rows, more = await front.tx.read(accounts.page, after=asked.after, limit=asked.limit)
    return json_response(list_object([account_object(row) for row in rows], has_more=more))


@router.get("/{account_id}")
async def retrieve(account_id: str, front: FrontDep, _: AdminCaller) -> Response:
    """One account, its limits and its credits."""
    return json_response(account_object(await front.tx.read(accounts.find, account_id)))


@router.post("/{account_id}", openapi_extra=body_of(AccountChange))
async def change(
    account_id: str, request: Request, front: FrontDep, caller: AdminCaller
) -> Response:
    """Set an account's limits."""
    asked = await read_body(AccountChange, request)
    work = administration.limit_account
    return json_response(
        account_object(
            await front.tx.by(account_id, work, caller.actor, account_id, plain(asked.limits))
        )
    )


@router.post("/{account_id}/disable")
async def disable(account_id: str, front: FrontDep, caller: AdminCaller) -> Response:
    """Refuse its keys and tokens from now on; its jobs go on. Idempotent."""
    done = await front.tx.by(account_id, administration.disable_account, caller.actor, account_id)
    return json_response(account_object(done))


@router.post("/{account_id}/enable")
async def enable(account_id: str, front: FrontDep, caller: AdminCaller) -> Response:
    """Accept its keys and tokens again. Idempotent."""
    done = await front.tx.by(account_id, administration.enable_account, caller.actor, account_id)
    return json_response(account_object(done))
