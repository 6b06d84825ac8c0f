"""A worker that can be told to block its event loop, as a bug would: `python -m tests.blocking`."""

import sys
import time

from shared import log, queue
from workers.app import create_worker
from workers.process import run_worker
from workers.settings import WorkerSettings

BLOCK = "tests.block"

if __name__ == "__main__":
    settings = WorkerSettings()
    log.configure(settings, "worker")
    app = create_worker(settings)

    @app.task(name=BLOCK, shared=False)
    async def block() -> None:
        """Let nobody else have a turn."""
        time.sleep(3600)  # noqa: ASYNC251  (that is the point)

    sys.exit(
        run_worker(app, concurrency=10, name="blocking", queues=queue.QUEUES, log_level="INFO")
    )
