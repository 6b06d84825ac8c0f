"""A `sluice` command that kill -9s itself: `python -m tests.faults.doomed worker attempt_ended`.

It dies of the first line of its log that has all these words: what that line tells of is done,
and what would have followed never happens.
"""

import io
import os
import signal
import sys

if __name__ == "__main__":
    words = [sys.argv.pop() for _ in sys.argv[2:]]

    class LastWords(io.TextIOWrapper):
        """Where the log goes."""

        def write(self, line: str, /) -> int:
            """Write it, and perhaps die."""
            written = super().write(line)
            if all(word in line for word in words):
                self.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return written

    sys.stderr = LastWords(sys.stderr.buffer, line_buffering=True)

    from cli.main import app

    app()
