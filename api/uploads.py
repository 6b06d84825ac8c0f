"""From the bytes of a batch's input to a committed file: written and checked as they arrive."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import orjson
from fastapi import Request

from api.callers import Caller
from api.form import Form
from api.front import Front
from api.lines import Checker, Report, body_check
from api.parse import validate
from api.wire.files import Upload
from shared import clock, files
from shared.errors import RequestTooLarge, Unavailable
from shared.tables import File


class Input:
    """A batch's input on its way into the storage."""

    def __init__(self, front: Front, caller: Caller, file_id: str) -> None:
        self.report = Report()
        """What there is to say about its lines, once they are written."""
        self.completed = False
        """Its row is there: a batch may read it."""
        self._front = front
        self._caller = caller
        self._file_id = file_id
        self._size = 0

    async def write(self, pieces: AsyncIterator[bytes]) -> None:
        """Take in all of it. Raises `RequestTooLarge`."""
        limit = self._front.settings.file_limit
        check = body_check(self._front.catalog, self._caller.check_model)
        lines = Checker(check, longest=self._front.settings.body_limit)
        async with self._front.storage.writing(self._file_id) as write:
            async for piece in pieces:
                self._size += len(piece)
                if self._size > limit:
                    raise RequestTooLarge(f"The file is over {limit:,} bytes.", param="file")
                await write(piece)
                # A step is milliseconds of work, which the loop would not do for others meanwhile.
                await asyncio.to_thread(lines.feed, piece)
            self.report = await asyncio.to_thread(lines.end)

    async def complete(self, kept_for: timedelta) -> File:
        """Commit the file, with all that is wrong with it."""
        report = self.report
        if report.errors:
            shown = {"errors": report.errors, "problems": report.problems}
            await self._front.storage.put(self._file_id + files.REPORT, orjson.dumps(shown))
        file = await self._front.tx(
            files.complete,
            self._file_id,
            size=self._size,
            lines=report.lines,
            models=sorted(report.models),
            problem=report.summary,
            kept_ms=clock.span(kept_for),
        )
        self.completed = True
        return file


async def receive(request: Request, front: Front, caller: Caller) -> File:
    """Take in the file that a form carries.

    Raises `InvalidRequest`, `RequestTooLarge`, `UnsupportedMediaType` or `Unavailable`, and
    starlette's `ClientDisconnect`; nothing is left behind then.
    """
    form = Form(aiter(request.stream()), request.headers.get("content-type"))
    async with begun(front, caller, await form.filename()) as coming:
        await coming.write(form.content())
        return await coming.complete(validate(Upload, await form.fields()).kept_for)


@asynccontextmanager
async def begun(front: Front, caller: Caller, filename: str) -> AsyncIterator[Input]:
    """An input that is about to come; left by an exception, nothing of it is left behind.

    But for one that leaves in doubt whether something was committed: a batch may read the file. If
    none does, it expires.
    """
    file_id = await front.tx(files.begin, caller.account_id, filename, files.BATCH)
    coming = Input(front, caller, file_id)
    try:
        yield coming
    except Unavailable:
        raise
    except BaseException as error:
        if coming.completed and isinstance(error, asyncio.CancelledError):
            raise
        with suppress(Unavailable):
            await discard(front, file_id)
        raise


async def discard(front: Front, file_id: str) -> None:
    """Delete a file. Raises `Unavailable`."""
    # The row goes last: as long as it is there, whatever is left of the file can be found.
    await front.storage.delete(file_id, file_id + files.REPORT)
    await front.tx(files.forget, [file_id])
