"""From an upload's body to a committed file: written on and checked while it arrives."""

import asyncio
from contextlib import suppress

import orjson
from fastapi import Request

from api.deps import Caller
from api.form import Form
from api.front import Front
from api.lines import Lines, Report, body_check
from api.parse import validate
from api.wire.files import Upload
from shared import clock, files
from shared.errors import RequestTooLarge, Unavailable
from shared.tables import File


async def receive(request: Request, front: Front, caller: Caller) -> File:
    """Take in the file that a form carries.

    Raises `InvalidRequest`, `RequestTooLarge`, `UnsupportedMediaType` or `Unavailable`, and
    starlette's `ClientDisconnect`; nothing is left behind then.
    """
    form = Form(aiter(request.stream()), request.headers.get("content-type"))
    filename = await form.filename()
    file_id = await front.tx(files.begin, caller.account_id, filename, files.BATCH)
    try:
        size, report = await _written(form, front, caller, file_id)
        terms = validate(Upload, await form.fields())
        if report.errors:
            shown = {"errors": report.errors, "problems": report.problems}
            await front.storage.put(file_id + files.REPORT, orjson.dumps(shown))
        return await front.tx(
            files.complete,
            file_id,
            size=size,
            lines=report.lines,
            problem=report.summary,
            kept_ms=clock.span(terms.kept_for),
        )
    except Unavailable:
        raise  # it may be complete: what is not expires by itself
    except BaseException:
        with suppress(Unavailable):
            await front.storage.delete(file_id, file_id + files.REPORT)
            await front.tx(files.forget, [file_id])
        raise


async def _written(form: Form, front: Front, caller: Caller, file_id: str) -> tuple[int, Report]:
    """Bytes that are in the storage now, and what is wrong with their lines."""
    limit = front.settings.file_limit
    check = body_check(front.catalog, caller.check_model)
    lines = Lines(check, longest=front.settings.body_limit)
    size = 0
    async with front.storage.writing(file_id) as write:
        async for piece in form.content():
            size += len(piece)
            if size > limit:
                raise RequestTooLarge(f"The file is over {limit:,} bytes.", param="file")
            await write(piece)
            # A step is milliseconds of work, which the loop would not do for others meanwhile.
            await asyncio.to_thread(lines.feed, piece)
        report = await asyncio.to_thread(lines.end)
    return size, report
