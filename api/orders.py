"""What a request for a batch asks for, its input in the storage: a file, or what it brought."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import Request

from api import parse, uploads
from api.callers import Caller
from api.front import Front
from api.lines import ENDPOINT, Report
from api.wire.batches import BatchCreate, BatchTerms
from api.wire.files import KEPT_FOR
from api.wire.headers import is_ndjson, parse_sent
from api.wire.queries import parse_query
from shared import files
from shared.errors import InvalidRequest, ModelNotFound, NotFound
from shared.idempotency import Sent
from shared.tables import File

FILENAME: Final = "batch.jsonl"
DEEPEST: Final = 67
"""Levels of a body: those of a request of its own, and three around it."""
AT_ONCE: Final = 200
"""Requests that become lines at once."""


@dataclass(frozen=True, slots=True)
class Order:
    """A batch to be."""

    terms: BatchCreate
    file: File
    errors: list[dict[str, Any]] | None
    """What is wrong with the file: its first hundred problems."""
    sent: Sent | None
    brought: bool
    """The request brought the file: without a batch nobody needs it."""

    async def drop(self, front: Front) -> None:
        """Delete a file that the request brought."""
        if self.brought:
            await uploads.discard(front, self.file.id)


def taken(request: Request, front: Front, caller: Caller) -> AbstractAsyncContextManager[Order]:
    """Take in a request; left by an exception, nothing of what it brought is left behind.

    Raises `InvalidRequest` for what is wrong with it or with the lines it brings, `NotFound` for a
    file that is not the account's, and what `uploads.begun` does.
    """
    lines = is_ndjson(request.headers.get("content-type"))
    return (_taken_lines if lines else _taken_body)(request, front, caller)


@asynccontextmanager
async def _taken_lines(request: Request, front: Front, caller: Caller) -> AsyncIterator[Order]:
    query = parse_query(BatchTerms, request.query_params.multi_items())
    digest = hashlib.sha256()

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in request.stream():
            digest.update(piece)
            yield piece

    async with uploads.begun(front, caller, FILENAME) as coming:
        await coming.write(pieces())
        _check(coming.report)
        raw = {**query.model_dump(), "lines": digest.hexdigest()}
        sent = parse_sent(request, raw)
        file = await coming.complete(KEPT_FOR)
        yield Order(query.asked, file, None, sent, brought=True)


@asynccontextmanager
async def _taken_body(request: Request, front: Front, caller: Caller) -> AsyncIterator[Order]:
    body, content_type = await request.body(), request.headers.get("content-type")
    raw, terms = await parse.read(body, lambda: _parsed(body, content_type))
    sent = parse_sent(request, raw)
    if terms.requests is None:
        file = await _file(front, caller, terms.input_file_id or "")
        yield Order(terms, file, await _errors(front, file), sent, brought=False)
        return
    async with uploads.begun(front, caller, FILENAME) as coming:
        await coming.write(_lines(terms))
        _check(coming.report, "requests")
        yield Order(terms, await coming.complete(KEPT_FOR), None, sent, brought=True)


def _parsed(body: bytes, content_type: str | None) -> tuple[Any, BatchCreate]:
    raw = parse.parse_json(body, content_type=content_type, depth_limit=DEEPEST)
    return raw, parse.validate(BatchCreate, raw)


async def _lines(terms: BatchCreate) -> AsyncIterator[bytes]:
    """The requests of a body, as a file would have them."""
    requests = terms.requests or []
    for start in range(0, len(requests), AT_ONCE):
        some = requests[start : start + AT_ONCE]
        yield b"".join(orjson.dumps(_line(each, terms.model)) + b"\n" for each in some)


def _line(asked: Any, model: str | None) -> Any:
    if not isinstance(asked, dict):
        return asked
    body = asked.get("body")
    if model is not None and isinstance(body, dict) and body.get("model") is None:
        body = {**body, "model": model}
    return {"method": "POST", "url": ENDPOINT, **asked, "body": body}


def _check(report: Report, within: str = "") -> None:
    """Raises `InvalidRequest` when something is wrong with lines that came with the request."""
    if report.summary is None:
        return
    first = report.errors[0]
    param = first["param"]
    if within and first["line"]:
        param = f"{within}[{first['line'] - 1}]" + (f".{param}" if param else "")
    raise InvalidRequest(report.summary, param=param, details={"errors": report.errors})


async def _file(front: Front, caller: Caller, file_id: str) -> File:
    """The account's file, of models that the caller may ask for."""
    try:
        file = await front.tx.read(files.find, caller.account_id, file_id)
    except NotFound as error:
        error.param = "input_file_id"
        raise
    if file.purpose != files.BATCH:
        raise InvalidRequest(
            f"Its purpose is {file.purpose!r}, not '{files.BATCH}'.", param="input_file_id"
        )
    for name in file.models:
        with suppress(ModelNotFound):  # since it came; such lines fail
            caller.check_model(front.catalog.find(name))
    return file


async def _errors(front: Front, file: File) -> list[dict[str, Any]] | None:
    """What is wrong with its lines."""
    if file.status != files.ERROR:
        return None
    report = orjson.loads(await front.storage.read(file.id + files.REPORT))
    errors: list[dict[str, Any]] = report["errors"]
    return errors
