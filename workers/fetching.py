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

from shared import messages, sending
from shared.lifecycle import Lane

MOST: Final = 32
"""Hints that are taken at once."""
CLOSE: Final = 0.02
"""Seconds between two messages that belong to a queue: after a longer pause there is none to ask
for, and the question would only delay the answer."""

UNASKED: Final = 8
"""Messages that are taken as they come after one had none behind it: the question stops the thread
that fetches until Redis has answered."""

log = logging.getLogger(__name__)


def several(task: Any, app: Any, consumer: Any) -> Callable[..., object]:
    """Celery's strategy for a message, which asks first whether others wait behind it.

    Half of the slots that are free are left alone: some may be lent, or about to be.
    """
    handle: Callable[..., object] = strategy.default(task, app, consumer)
    came_at, unasked = -math.inf, 0

    def receive(message: Any, *rest: Any, **options: Any) -> object:
        nonlocal came_at, unasked
        before, came_at = came_at, time.monotonic()
        interactive = message.delivery_info.get("routing_key") == Lane.INTERACTIVE.value
        if interactive and came_at - before < CLOSE:
            free = consumer.pool.num_processes - len(state.reserved_requests)
            most = min(MOST, free // 2) - 1
            if unasked:
                unasked -= 1
            elif most > 0 and not _join(message, most):
                unasked = UNASKED
        return handle(message, *rest, **options)

    return receive


def _join(message: Any, most: int) -> bool:
    """Let a message that was handed out speak for so many more of its queue; False if it found
    none."""
    others = list(_behind(message.channel, most))
    if others:
        args, _, embedded = orjson.loads(message.body)
        message.body = orjson.dumps([args + others, sending.NOW_OR_ELSEWHERE, embedded])
    return bool(others)


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
