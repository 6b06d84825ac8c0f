"""How hints are taken from the broker: while there is room, several at once, as one call.

Celery fetches one message after another, and each takes longer than to claim ten jobs.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
from celery.worker import state, strategy
from redis.exceptions import RedisError

from shared import messages, queue
from shared.lifecycle import Lane

MOST: Final = 32
"""Hints that are taken at once."""
CLOSE: Final = 0.02
"""Seconds between two messages that belong to a queue: after a longer pause there is none to ask
for, and the question would only delay the answer."""

log = logging.getLogger(__name__)


def several(task: Any, app: Any, consumer: Any) -> Callable[..., object]:
    """Celery's strategy for a message, which asks first whether others wait behind it.

    Half of the slots that are free are left alone: some may be lent, or about to be.
    """
    handle: Callable[..., object] = strategy.default(task, app, consumer)
    came_at = -math.inf

    def receive(message: Any, *rest: Any, **options: Any) -> object:
        nonlocal came_at
        before, came_at = came_at, time.monotonic()
        interactive = message.delivery_info.get("routing_key") == Lane.INTERACTIVE.value
        if interactive and came_at - before < CLOSE:
            free = consumer.pool.num_processes - len(state.reserved_requests)
            _join(message, min(MOST, free // 2) - 1)
        return handle(message, *rest, **options)

    return receive


def _join(message: Any, most: int) -> None:
    """Let a message that was handed out speak for so many more of its queue."""
    others = list(_behind(message.channel, most)) if most > 0 else []
    if others:
        args, _, embedded = orjson.loads(message.body)
        message.body = orjson.dumps([args + others, queue.NOW_OR_ELSEWHERE, embedded])


def _behind(channel: Any, most: int) -> Iterator[Any]:
    """The jobs that the next hints name."""
    try:
        with channel.conn_or_acquire() as client:
            raw = client.rpop(Lane.INTERACTIVE.value, most) or []
    except (RedisError, OSError):  # Celery will see, and has a message in hand
        return
    for each in raw:
        try:
            yield from messages.arguments(each)
        except ValueError as error:
            log.error("dropped what came from a queue: %s", error)
