"""The broker: Celery on Redis, and the hints that tell workers which jobs to look at."""

import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from celery import Celery
from kombu import entity
from kombu.connection import Connection
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
ROUND: Final = 1_000
"""Hints that share one round trip."""
PAGE: Final = 500
"""Hints that are read from a queue at once: half a megabyte, and milliseconds of a loop's time."""

SHARED: Final = 16
"""Interactive jobs that share a hint while the workers keep up."""
SHORT: Final = 4
"""Hints in a queue that is emptied as fast as it fills."""


class Hint(NamedTuple):
    """A message: which jobs to look at."""

    lane: Lane
    job_ids: Sequence[str]
    options: Mapping[str, bool] = {}
    """`wait`, if not all of them may be looked at one after another."""


NOW_OR_ELSEWHERE: Final = {"wait": False}
"""What finds no slot at once is hinted again, perhaps to another worker."""

log = logging.getLogger(__name__)


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


class Hints:
    """Publishes hints from a thread of its own, so that nobody waits for the broker.

    `on_lost` is called in that thread with the ids whose hints could not be sent.
    """

    def __init__(
        self, app: Celery, on_lost: Callable[[list[str]], None], *, capacity: int = 10_000
    ) -> None:
        self._app = app
        self._on_lost = on_lost
        self._waiting: SimpleQueue[tuple[Lane, Sequence[str], int] | None] = SimpleQueue()
        self._capacity = capacity
        self._connection: Connection | None = None
        self._redis: Any = None
        self._keep_up = False
        """The workers empty the interactive queue as fast as it fills."""
        self._away = False
        self._closed = False
        self._thread = Thread(target=self._run, name="hints", daemon=True)
        self._thread.start()

    def send(self, lane: Lane, job_ids: Sequence[str], *, together: int = 1) -> None:
        """Hint these jobs soon, so many `together` in a message; returns at once and never raises,
        from any thread. Interactive jobs share messages while that delays none of them.

        When `capacity` calls wait already the hints are dropped: the sweep finds those jobs by
        the age of their hint.
        """
        if self._waiting.qsize() >= self._capacity:
            log.warning("hints dropped, too many wait for Redis: %d", len(job_ids))
        else:
            self._waiting.put((lane, job_ids, together))

    def close(self, within: timedelta = timedelta(seconds=10)) -> None:
        """Send what still waits and stop; what takes longer is left to the sweep."""
        self._waiting.put(None)
        self._thread.join(within.total_seconds())

    def _run(self) -> None:
        while not self._closed:
            if hints := self._gather():
                self._deliver(hints)
        self._disconnect()

    def _gather(self) -> list[Hint]:
        """Wait for the next hints and take what waits behind them, about a round."""
        hints: list[Hint] = []
        singles: list[str] = []
        entry = self._waiting.get()
        while entry is not None:
            lane, job_ids, together = entry
            if lane == Lane.INTERACTIVE and self._keep_up:
                singles += job_ids
            else:
                hints += [Hint(lane, some) for some in _parts(job_ids, together)]
            if len(hints) >= ROUND:
                break
            try:
                entry = self._waiting.get_nowait()
            except Empty:
                break
        else:
            self._closed = True
        for some in _parts(singles, SHARED):
            options = NOW_OR_ELSEWHERE if len(some) > 1 else {}
            hints.append(Hint(Lane.INTERACTIVE, some, options))
        return hints

    def _deliver(self, hints: list[Hint]) -> None:
        # A connection that idled may be dead without anybody knowing, and a hint may be sent
        # twice: so a fresh connection gets a second try, unless Redis is known to be away.
        for last in (True,) if self._away else (False, True):
            try:
                self._publish(hints)
            except Exception as error:  # whatever it is, this thread has to go on
                self._disconnect()
                if last:
                    self._lose(hints, error)
            else:
                if self._away:
                    log.info("Redis is back, hints are sent again")
                self._away = False
                return

    def _publish(self, hints: list[Hint]) -> None:
        redis = self._redis or self._open()
        commands = [
            ("LPUSH", queue_key(lane.value), messages.hint(RUN_JOB, job_ids, options, lane.value))
            for lane, job_ids, options in hints
        ]
        redis.send_packed_command(redis.pack_commands(commands))
        lengths = [redis.read_response() for _ in commands]
        if hints[-1].lane == Lane.INTERACTIVE:
            self._keep_up = lengths[-1] <= SHORT

    def _open(self) -> Any:
        self._connection = self._app.connection_for_write()
        # Kombu's own patience is endless; ours is one more try.
        self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        channel: Any = self._connection.default_channel
        # A client's pipeline takes longer than the round trip.
        self._redis = channel.pool.get_connection()
        return self._redis

    def _disconnect(self) -> None:
        connection, self._connection, self._redis = self._connection, None, None
        if connection is not None:
            try:
                connection.release()  # type: ignore[no-untyped-call]
            except Exception:  # it was broken: that is why it is closed
                log.debug("closing a broken connection", exc_info=True)

    def _lose(self, hints: list[Hint], error: Exception) -> None:
        if not self._away:
            log.warning("Redis is away, hints are lost until it is back: %r", error)
        self._away = True
        try:
            self._on_lost([job_id for hint in hints for job_id in hint.job_ids])
        except Exception:
            log.exception("could not note lost hints")


def _parts(job_ids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [job_ids[start : start + size] for start in range(0, len(job_ids), size)]


def _without_master(url: str) -> tuple[str, str | None]:
    """Take Sentinel's `master_name`, which kombu wants as an option, out of the URL's query."""
    if not url.startswith("sentinel"):
        return url, None
    address, _, query = url.partition("?")
    options = dict(parse_qsl(query))
    master = options.pop("master_name", "mymaster")
    return (f"{address}?{urlencode(options)}" if options else address), master
