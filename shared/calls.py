"""What an event loop asks of a thread that has the database, and how it gets its answer."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlmodel import Session

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Call(Generic[R]):
    """One piece of work for a session."""

    work: Callable[[Session], R]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[R]
    account_id: str = ""
    alone: bool = False
    """In a transaction of its own."""
    many: Callable[[Session, list[Any]], list[Any]] | None = None
    """What does this and others of its kind at once, given the items of all."""
    item: Any = None
    made_at: float = field(default_factory=time.monotonic)
    under_way: bool = False
    """In a transaction; before that, a call can be refused for certain."""
    result: Any = None
    error: BaseException | None = None


def hand_over(calls: Iterable[Call[Any]]) -> None:
    """Hand results over, with one wake-up of each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Call[Any]]] = {}
    for call in calls:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, some in by_loop.items():
        # A loop that has closed has nobody left to tell.
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, some)


def _resolve(calls: list[Call[Any]]) -> None:
    for call in calls:
        if call.future.done():
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)
