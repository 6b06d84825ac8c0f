"""What Celery does by itself on the same Valkey: how fast no-op tasks go in, and come out.

It is run as a worker, too: `python -m celery -A bench.celery_floor worker …`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from celery import Celery
from redis import Redis

from bench.figures import Figure, ms
from bench.service import Service

TASKS: Final = 3_000
QUEUE: Final = "celery"
BROKER: Final = "BENCH_BROKER"


def connect(broker: str | None) -> Celery:
    """An app that knows one task, which costs nothing but Celery."""
    app = Celery("bench.celery_floor", broker=broker, set_as_current=False)
    app.conf.update(
        result_backend_thread_safe=True, task_ignore_result=True, worker_prefetch_multiplier=4
    )

    @app.task(name="nothing", shared=False)  # type: ignore[untyped-decorator]
    def nothing(job_id: str) -> None:
        pass

    return app


app = connect(os.environ.get(BROKER))
"""The worker's."""


def figures(service: Service) -> list[Figure]:
    """How many tasks a second go in from one process, and out through a worker of 200 threads."""
    redis_url = service.stack.redis_url
    nothing = connect(redis_url).tasks["nothing"]
    redis = Redis.from_url(redis_url)
    began, spent = time.perf_counter(), time.process_time()
    for number in range(TASKS):
        nothing.apply_async((f"{number:026}",))
    into, spent = time.perf_counter() - began, time.process_time() - spent
    with _worker(redis_url):
        while redis.llen(QUEUE) == TASKS:
            time.sleep(0.005)
        left, began = int(redis.llen(QUEUE)), time.perf_counter()
        while redis.llen(QUEUE):
            time.sleep(0.005)
        out = time.perf_counter() - began
    return [
        Figure(
            "Celery by itself, `apply_async`",
            "",
            f"{TASKS / into:,.0f}/s",
            f"{ms(spent / TASKS)} of CPU each",
        ),
        Figure("Celery by itself, no-op tasks, one worker", "", f"{left / out:,.0f}/s"),
    ]


@contextmanager
def _worker(redis_url: str) -> Iterator[None]:
    options = ["--pool", "threads", "--concurrency", "200", "--loglevel", "ERROR"]
    lean = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "bench.celery_floor", "worker", *options, *lean],
        env={**os.environ, BROKER: redis_url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
