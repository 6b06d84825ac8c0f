"""Reads that many ask for at the same time: those that wait are answered by one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Final

from sqlmodel import Session

from shared.calls import Call, hand_over
from shared.errors import Unavailable

Read = Callable[[Callable[[Session], Any]], Any]

MOST: Final = 256
"""Calls that one read answers."""


class Looks:
    """A thread that reads for all who have asked since it last did.

    A thread for each read, and a hand-over to it, would take longer than the read.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._waiting: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="look", daemon=True)
        self._thread.start()

    def put(self, call: Call[Any]) -> None:
        """Have a call answered; it has `many`."""
        self._waiting.put(call)

    def close(self, within: float) -> None:
        """Answer what waits, and stop."""
        self._waiting.put(None)
        self._thread.join(within)

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            kinds: dict[Any, list[Call[Any]]] = {}
            for call in (first, *islice(self._others(), MOST - 1)):
                if not call.future.done():
                    kinds.setdefault(call.many, []).append(call)
            for many, calls in kinds.items():
                self._look(many, calls)

    def _others(self) -> Iterator[Call[Any]]:
        with suppress(Empty):
            while (call := self._waiting.get_nowait()) is not None:
                yield call
            self._waiting.put(None)

    def _look(
        self, many: Callable[[Session, list[Any]], list[Any]], calls: list[Call[Any]]
    ) -> None:
        """Read what these ask for; when that fails, for each by itself."""
        try:
            results = self._read(lambda session: many(session, [call.item for call in calls]))
            for call, result in zip(calls, results, strict=True):
                call.result = result
        except Exception as error:
            if len(calls) > 1 and not isinstance(error, Unavailable):
                for call in calls:
                    self._look(many, [call])
                return
            for call in calls:
                call.error = error
        hand_over(calls)
