"""Keys, for administrators: mint, change, rotate, revoke. A key's text is shown once."""

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.callers import Caller
from api.deps import AdminCaller, FrontDep
from api.errors import json_response
from api.wire.admin import KeyChange, KeyCreate, KeyPage, KeyRotate, key_object, read_body
from api.wire.objects import list_object
from api.wire.openapi import body_of, query_of
from api.wire.queries import parse_query
from shared import accounts, administration, keys
from shared.errors import PermissionDenied

router = APIRouter(prefix="/v1/admin/keys", tags=["admin"])


@router.post("", status_code=201, openapi_extra=body_of(KeyCreate))
async def create(request: Request, front: FrontDep, caller: AdminCaller) -> Response:
    """Mint a key; `api_key` in the answer is its only showing."""
    asked = await read_body(KeyCreate, request)
    _check_lasting(caller, asked.scopes)
    account = await front.tx.read(accounts.find, asked.account_id)
    key, text = await front.tx(
        administration.create_key, caller.actor, account=account.name, **asked.terms
    )
    return json_response(key_object(key, text=text), status=201)


@router.get("", openapi_extra=query_of(KeyPage))
async def list_keys(request: Request, front: FrontDep, _: AdminCaller) -> Response:
    """All keys, or those of one account, newest first."""
    asked = parse_query(KeyPage, request.query_params.multi_items())
    if asked.account_id is not None:
        await front.tx.read(accounts.find, asked.account_id)
    rows, more = await front.tx.read(
        keys.page, account_id=asked.account_id, after=asked.after, limit=asked.limit
    )
    return json_response(list_object([key_object(row) for row in rows], has_more=more))


@router.get("/{key_id}")
async def retrieve(key_id: str, front: FrontDep, _: AdminCaller) -> Response:
    """One key and its terms."""
    return json_response(key_object(await front.tx.read(keys.find, key_id)))


@router.post("/{key_id}", openapi_extra=body_of(KeyChange))
async def change(key_id: str, request: Request, front: FrontDep, caller: AdminCaller) -> Response:
    """Change what is sent, and nothing else; `expires_at` now or earlier ends the key."""
    asked = await read_body(KeyChange, request)
    _check_lasting(caller, asked.scopes)
    if "expires_at" in asked.terms:  # an ended one would live on
        _check_lasting(caller, (await front.tx.read(keys.find, key_id)).scopes)
    key = await front.tx(administration.change_key, caller.actor, key_id, **asked.terms)
    return json_response(key_object(key))


@router.post("/{key_id}/rotate", status_code=201, openapi_extra=body_of(KeyRotate))
async def rotate(key_id: str, request: Request, front: FrontDep, caller: AdminCaller) -> Response:
    """Mint a successor on the same terms; the key goes on for `overlap` seconds, then ends."""
    asked = await read_body(KeyRotate, request)
    _check_lasting(caller, (await front.tx.read(keys.find, key_id)).scopes)
    key, text = await front.tx(
        administration.rotate_key, caller.actor, key_id, overlap_ms=asked.overlap * 1000
    )
    return json_response(key_object(key, text=text), status=201)


@router.post("/{key_id}/revoke")
async def revoke(key_id: str, front: FrontDep, caller: AdminCaller) -> Response:
    """End a key now and for good. Idempotent."""
    return json_response(
        key_object(await front.tx(administration.revoke_key, caller.actor, key_id))
    )


def _check_lasting(caller: Caller, scopes: Iterable[str]) -> None:
    """A token may administer while it lives, but not make a key of that right."""
    if keys.ADMIN in scopes and caller.key_id is None:
        raise PermissionDenied("Only a key can make a key with the scope 'admin'.", param="scopes")
