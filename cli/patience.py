"""How long the CLI puts up with an API that is away, restarting or too busy."""

import time
from collections.abc import Callable
from typing import Final

import httpx

from cli.client import Refused, refuse, unreachable
from cli.failure import Failure
from cli.screen import note

PATIENCE: Final = 60.0
"""Seconds without any answer after which we give up; what was accepted goes on."""
LONGEST_PAUSE: Final = 2.0
COME_BACK: Final = frozenset({409, 429, 500, 502, 503, 504})
"""Statuses that pass. 409: the same request is being accepted right now."""


class Patience:
    """How often to try again, and for how long: renewed by every sign of life."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Something was heard."""
        self._until = time.monotonic() + self._seconds
        self._pause = 0.1
        self._told = False

    def wait(self, failure: Failure) -> None:
        """Pause before the next try; raises `failure` when there was nothing for too long."""
        if time.monotonic() + self._pause > self._until:
            raise failure
        if not self._told:
            note(f"{failure.message} Trying again …")
            self._told = True
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)


def insist(
    client: httpx.Client, ask: Callable[[], httpx.Response], waiting: Patience
) -> httpx.Response:
    """The answer to a request that may be sent any number of times.

    Raises `Failure` when the API refuses it, or there was none for too long.
    """
    while True:
        failure: Failure
        try:
            response = ask()
            refuse(response)
        except httpx.TransportError as error:
            failure = unreachable(client, error)
        except Refused as refused:
            if refused.status not in COME_BACK:
                raise
            failure = refused
        else:
            waiting.renew()
            return response
        waiting.wait(failure)
