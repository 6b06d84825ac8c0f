"""Lines of a batch as JSONL, made from rows page by page: only a page of them is in memory."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from sqlmodel import Session

from shared import batch_results, rendering
from shared.db import Transactions

PAGE: Final = 100
"""Lines that are read at once."""


async def file_pages(
    tx: Transactions, batch_id: str, start: int, end: int, *, completed: bool
) -> AsyncIterator[bytes]:
    """The bytes of its output file (`completed`), or of its error file, from one to before another.

    What is before the first is not read, only measured.
    """
    begins, last = 0, ""
    while begins < end:
        if begins < start:
            size, more = await tx.read(_measured, batch_id, completed, last)
            if begins + size <= start and more:
                begins, last = begins + size, more
                continue
        page, more = await tx.read(_page, batch_id, completed, last)
        yield page[max(0, start - begins) : end - begins]
        if more is None:
            return
        begins, last = begins + len(page), more


def _page(session: Session, batch_id: str, completed: bool, after: str) -> tuple[bytes, str | None]:
    lines = batch_results.lines(session, batch_id, completed=completed, after=after, limit=PAGE)
    more = lines[-1].id if len(lines) == PAGE else None
    return b"".join(map(rendering.rendered, lines)), more


def _measured(
    session: Session, batch_id: str, completed: bool, after: str
) -> tuple[int, str | None]:
    lines = batch_results.lines(
        session, batch_id, completed=completed, after=after, limit=PAGE, with_response=False
    )
    more = lines[-1].id if len(lines) == PAGE else None
    return sum(map(rendering.size, lines)), more


def results_page(
    session: Session, batch_id: str, *, after: int, limit: int, statuses: Sequence[str]
) -> tuple[list[bytes], int]:
    """At most a page of lines that ended after that number, and the number of the last."""
    found = batch_results.results(
        session, batch_id, after=after, limit=min(limit, PAGE), statuses=statuses or None
    )
    last = found[-1].result_number if found else None
    return [rendering.rendered(line) for line in found], after if last is None else last
