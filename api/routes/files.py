"""OpenAI's files: what batches read and what they write."""

from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from api import uploads
from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.front import Front
from api.ranges import parse_range
from api.rendered import file_pages
from api.wire.files import CONTENT, UPLOAD, FileFilters, file_object
from api.wire.objects import list_object
from api.wire.openapi import query_of
from api.wire.queries import parse_query
from shared import batches, files
from shared.errors import NotFound
from shared.tables import File

PATH: Final = "/v1/files"
FORM: Final = 64 * 1024
"""Bytes that the form around a file may have."""

router = APIRouter(prefix=PATH, tags=["files"])


@router.post("", openapi_extra=UPLOAD)
async def create(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Upload a batch's input. Its lines are checked at once; `status` says what came of it."""
    return json_response(file_object(await uploads.receive(request, front, caller)))


@router.get("", openapi_extra=query_of(FileFilters))
async def list_files(request: Request, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Newest first unless told; perhaps of one purpose."""
    asked = parse_query(FileFilters, request.query_params.multi_items())
    rows, more = await front.tx.read(
        files.page,
        caller.account_id,
        purpose=asked.purpose,
        newest_first=asked.order == "desc",
        after=asked.after,
        limit=asked.limit,
    )
    return json_response(list_object([file_object(row) for row in rows], has_more=more))


@router.get("/{file_id}")
async def retrieve(file_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """One file."""
    found = await front.tx.read(files.find, caller.account_id, file_id)
    return json_response(file_object(found))


@router.get("/{file_id}/content", responses=CONTENT)
async def content(
    file_id: str, request: Request, front: FrontDep, caller: AuthorizedCaller
) -> Response:
    """Its bytes, or those that `Range` asks for."""
    file = await front.tx.read(files.find, caller.account_id, file_id)
    tag = f'"{file.id}"'  # a file never changes
    wanted = request.headers.get("range")
    if request.headers.get("if-range", tag) != tag:
        wanted = None
    span = parse_range(wanted, file.bytes)
    start, end = span or (0, file.bytes)
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": f"attachment; filename*=utf-8''{quote(file.filename, safe='')}",
        "content-length": str(end - start),
        "etag": tag,
        "x-content-type-options": "nosniff",
    }
    if span is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    return StreamingResponse(
        await _opened(front, file, span),
        status_code=200 if span is None else 206,
        headers=headers,
        media_type="application/octet-stream",
    )


@router.delete("/{file_id}")
async def delete(file_id: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Delete a file."""
    file = await front.tx.read(files.find, caller.account_id, file_id)
    if file.batch_id is None:
        await uploads.discard(front, file.id)
    else:
        await front.tx(files.forget, [file.id])  # it was never more than a view of its lines
    return json_response({"id": file.id, "object": "file", "deleted": True})


async def _opened(front: Front, file: File, span: tuple[int, int] | None) -> AsyncIterator[bytes]:
    if file.batch_id is None:
        return await front.storage.open(file.id, span)
    batch = await front.tx.read(batches.find, file.account_id, file.batch_id)
    if file.id not in (batch.output_file_id, batch.error_file_id):
        raise NotFound("Its lines are tried anew: the batch will have other files.")
    start, end = span or (0, file.bytes)
    completed = file.id == batch.output_file_id
    return file_pages(front.tx, batch.id, start, end, completed=completed)
