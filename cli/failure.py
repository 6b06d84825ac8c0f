"""How a command ends when it cannot do its work: one sentence and an exit code."""

from typing import Final

FAILED: Final = 1
"""It was tried, and failed."""
USAGE: Final = 2
"""It was called or configured wrongly; nothing was tried."""
INTERRUPTED: Final = 130
"""Ctrl-C."""


class Failure(Exception):
    """Ends the command: `message` goes to stderr, `code` is what the shell sees."""

    def __init__(self, message: str, *, code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
