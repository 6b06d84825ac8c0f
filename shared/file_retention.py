"""Retention of files: of those that have expired the objects go, then the rows, in small steps."""

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from shared import files
from shared.db import Transactions
from shared.errors import Unavailable
from shared.storage import Storage

log = structlog.get_logger()

AT_ONCE: Final = 200
"""Files that one step deletes at most."""


async def enforce(tx: Transactions, storage: Storage) -> None:
    """Delete every file that has expired, and what killed uploads have left.

    Whatever ends it in between has lost nothing: a row goes last, so the next run finds the rest.
    """
    try:
        while due := await tx.read(files.due, AT_ONCE):
            for file_id in due:
                await storage.delete(file_id, file_id + files.REPORT)
            await tx(files.forget, due)
            log.info("files_expired", files=len(due))
    except Unavailable as error:
        log.warning("file_retention_waits", error=error.message)
    left = timedelta(milliseconds=files.UPLOAD_WITHIN)
    if swept := await asyncio.to_thread(storage.sweep, left):
        log.info("uploads_swept", files=swept)
