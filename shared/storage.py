"""Where the bytes of files are: a folder, or a bucket of S3, Google Cloud Storage or Azure."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from shared.errors import NotFound, Unavailable

PART: Final = 5 * 1024 * 1024
"""Bytes that are sent at once, the least that S3 takes. An upload holds two of them in memory."""
READ_AT_ONCE: Final = 256 * 1024
"""Bytes, about."""

Write = Callable[[bytes], Awaitable[object]]


class Storage:
    """Objects by name. Only our own ids are names: nothing a caller says goes into a path.

    Every method but `sweep` raises `Unavailable` when the storage does not do what it should.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    @cached_property
    def _store(self) -> ObjectStore:
        # Opened when it is first used: a service without batches needs none.
        if "://" in self._place:
            return from_url(self._place)
        Path(self._place).mkdir(mode=0o700, parents=True, exist_ok=True)
        return LocalStore(self._place)

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[Write]:
        """Write an object piece by piece. It appears as a whole at the end, or never."""
        with _answering():
            # Left by an exception, this takes back what it has staged.
            async with obstore.open_writer_async(
                self._store, name, buffer_size=PART, max_concurrency=1
            ) as writer:
                yield writer.write

    async def put(self, name: str, content: bytes) -> None:
        """Write a small object."""
        with _answering():
            await obstore.put_async(self._store, name, content)

    async def read(self, name: str) -> bytes:
        """A small object. Raises `NotFound`."""
        return b"".join([piece async for piece in await self.open(name)])

    async def open(self, name: str, span: tuple[int, int] | None = None) -> AsyncIterator[bytes]:
        """An object's bytes, or those from the first number to before the other, as they come.

        Raises `NotFound`; what goes wrong later, while it is read, is not translated.
        """
        with _answering():
            if span is None:
                found = await obstore.get_async(self._store, name)
            else:
                found = await obstore.get_async(self._store, name, options={"range": span})
        return aiter(found.stream(READ_AT_ONCE))

    async def delete(self, *names: str) -> None:
        """Delete objects; those that are not there are deleted already."""
        for name in names:
            with suppress(NotFound), _answering():
                await obstore.delete_async(self._store, name)

    def sweep(self, older_than: timedelta) -> int:
        """Delete what killed processes had begun to write; how many. Blocks.

        Only in a folder: a bucket has a rule for uploads that were never completed.
        """
        folder = Path(self._place)
        if "://" in self._place or not folder.is_dir():
            return 0
        past = time.time() - older_than.total_seconds()
        left = [path for path in folder.glob("*#*") if path.stat().st_mtime < past]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("The content of this file is gone.") from error
    except (BaseError, OSError) as error:
        raise Unavailable("The storage of files does not answer.") from error
