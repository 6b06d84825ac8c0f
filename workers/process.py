"""A worker process: Celery's worker with our pool, and with a heart that gives way."""

import logging
import socket
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.platforms import EX_FAILURE, EX_OK
from celery.signals import setup_logging
from celery.worker import heartbeat

from workers.pool import AsyncIOPool


class Heart(heartbeat.Heart):  # type: ignore[misc]
    """Tells Flower that the worker is there; keeps what it cannot send for when Redis is back.

    Celery's own insists, in the main thread, which then hears neither SIGTERM nor SIGQUIT.
    """

    def _send(self, event: str, retry: bool = False) -> Any:
        return super()._send(event, retry=False)


def run_worker(
    app: Celery, *, concurrency: int, name: str, queues: Sequence[str], log_level: str
) -> int:
    """Run a worker in this process and its main thread until a signal ends it; its exit code.

    `name` is a node's name, to which the host's is added unless it has an `@`. `queues` are
    emptied in their order. Logging is left as it was set up, but for the level of Celery's own.
    """
    heartbeat.Heart = Heart
    setup_logging.connect(_leave_logging_alone)
    logging.getLogger("celery").setLevel(log_level)
    worker = app.Worker(
        pool=AsyncIOPool,
        concurrency=concurrency,
        hostname=name if "@" in name else f"{name}@{socket.gethostname()}",
        queues=list(queues),
        loglevel=log_level,
        task_events=False,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or (EX_FAILURE if worker.pool.failure else EX_OK))


def _leave_logging_alone(**_: object) -> None:
    """A receiver of this signal keeps Celery from configuring the root logger."""
