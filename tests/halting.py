"""A worker that stands still when it is about to say that it is there: `python -m tests.halting`.

Until SIGCONT; whatever happens in the meantime happens at that line.
"""

import os
import signal
import sys

from celery.signals import heartbeat_sent

from cli.main import app

if __name__ == "__main__":

    def halt(**_: object) -> None:
        """Once."""
        heartbeat_sent.disconnect(halt)
        os.kill(os.getpid(), signal.SIGSTOP)

    heartbeat_sent.connect(halt)
    sys.exit(app())
