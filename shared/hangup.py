"""SIGHUP says one of two things: read the catalogue anew, or that the terminal is gone."""

import os
import signal
from collections.abc import Callable
from types import FrameType


def has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def on_hangup(reload: Callable[[], object]) -> None:
    """Have SIGHUP call this, from the signal's handler, or stop the process as SIGTERM does.

    It stops when it had a terminal and has none any more: whoever started it there closed it.
    """
    had_terminal = has_terminal()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if had_terminal and not has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            reload()

    signal.signal(signal.SIGHUP, handle)
