"""The broker: Celery on Redis, whose queues have the hints that tell workers of jobs."""

import ssl
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from celery import Celery
from kombu import entity
from redis.asyncio import Redis

from shared import messages
from shared.lifecycle import Lane

RUN_JOB: Final = "sluice.run_job"
PRUNE: Final = "sluice.prune"
MAINTENANCE: Final = "maintenance"
QUEUES: Final = (*(lane.value for lane in Lane), MAINTENANCE)
PREFIX: Final = "sluice:"
OVERFLOWS: Final = "sluice:overflows"
"""A key that is there while interactive jobs wait in the database for room in the queue."""
PAGE: Final = 500
"""Hints that are read from a queue at once: half a megabyte, and milliseconds of a loop's time."""


def connect(redis_url: str) -> Celery:
    """A Celery app on this Redis; nothing is opened until it is used.

    `sentinel://host:port;sentinel://…/0?master_name=NAME` names its master in the query.
    """
    messages.survive_a_restart()
    messages.survive_garbage(QUEUES)
    messages.keep_clients()
    url, master = _without_master(redis_url)
    app = Celery("sluice", broker=url, set_as_current=False)
    app.conf.update(
        task_queues=[_queue(name) for name in QUEUES],
        task_default_queue=MAINTENANCE,
        task_create_missing_queues=False,
        task_serializer="json",
        accept_content=["json"],
        # Early acks: with late ones every blip of Redis runs all running tasks a second time.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        # Results live in the job's row.
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_publish_retry=False,  # a failed publish is the feeder's to repeat
        task_send_sent_event=False,
        worker_send_task_events=False,  # Flower asks for them
        # Fetch a hint only when a slot is free: what waits, waits where another worker sees it.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        # Cancels un-acknowledged tasks only, so none of ours; False warns at each reconnect.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # 100 by default, after which a worker gives up
        broker_transport_options={
            "global_keyprefix": PREFIX,
            "priority_steps": [0],  # one list per queue; lanes are our priorities
            "queue_order_strategy": "priority",  # in the order of the worker's queues
            # Maintenance that was popped and never acknowledged comes back within 70 s.
            "visibility_timeout": 60,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 30,
            # Without these a Redis that hangs blocks a publish for ever.
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            **({"master_name": master} if master else {}),
        },
    )
    if url.startswith("rediss://") and "ssl_" not in url:
        # kombu's own default accepts any certificate.
        app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return app


def _queue(name: str) -> entity.Queue:
    """A lane's hints are gone when they are handed out: for one that gets lost there is the sweep,
    and to keep them until they are acknowledged is half of what a hint costs."""
    return entity.Queue(name, no_ack=name != MAINTENANCE)  # type: ignore[no-untyped-call]


def queue_key(queue: str) -> str:
    """The Redis list behind a lane or another queue: its LLEN is the number of waiting hints."""
    return PREFIX + queue


async def waiting(redis: Redis, lane: Lane) -> set[str]:
    """The jobs whose hints are in a lane's queue. Raises `RedisError`."""
    found: set[str] = set()
    start = 0
    # From the newest to the oldest: hints that come in meanwhile shift the others, so that some are
    # read twice, and those that leave are at the end. None that stays is overlooked.
    while page := await _page(redis, lane, start):
        start += len(page)
        for message in page:
            with suppress(ValueError):
                found.update(map(str, messages.arguments(message)))
    return found


async def _page(redis: Redis, lane: Lane, start: int) -> list[bytes]:
    page: Any = redis.lrange(queue_key(lane.value), start, start + PAGE - 1)
    return list(await page)


def _without_master(url: str) -> tuple[str, str | None]:
    """Take Sentinel's `master_name`, which kombu wants as an option, out of the URL's query."""
    if not url.startswith("sentinel"):
        return url, None
    address, _, query = url.partition("?")
    options = dict(parse_qsl(query))
    master = options.pop("master_name", "mymaster")
    return (f"{address}?{urlencode(options)}" if options else address), master
