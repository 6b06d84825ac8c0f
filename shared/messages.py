"""Messages as they lie in the broker's queues, and three repairs to how kombu 5.7 handles them.

Two are for something that would end a worker, the third for what costs it most; tests fail without
them.
"""

import logging
from base64 import b64decode
from collections.abc import Collection
from typing import Any, cast

import orjson
from kombu.transport.redis import Channel, Transport

log = logging.getLogger(__name__)


def arguments(message: Any) -> list[Any]:
    """The arguments of the call that a message, as text or parsed, asks for.

    Raises `ValueError` for what no producer of Celery's could have sent.
    """
    try:
        parsed = orjson.loads(message) if isinstance(message, bytes | str) else message
        headers, properties = parsed["headers"], parsed["properties"]
        args, kwargs, _ = orjson.loads(b64decode(parsed["body"], validate=True))
        texts = headers["task"], headers["id"], properties["delivery_tag"]
        tables = properties["delivery_info"], kwargs
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("no message of Celery's") from error
    shaped = (
        all(isinstance(each, str) for each in texts),
        all(isinstance(each, dict) for each in tables),
        isinstance(args, list),
    )
    if not all(shaped):
        raise ValueError("no message of Celery's")
    return cast(list[Any], args)


def survive_a_restart() -> None:
    """Make kombu reconnect when Redis restarts while a message is un-acknowledged.

    It closes a channel whose transport is gone already: an `AttributeError`, which it does not
    take for a connection error.
    """
    if AttributeError not in Transport.connection_errors:
        Transport.connection_errors += (AttributeError,)


def survive_garbage(queues: Collection[str]) -> None:
    """Make kombu drop what is no message from these queues.

    It would raise and end the worker; and what it had noted as un-acknowledged before it raised
    would come back, and end the next one.
    """

    def read(channel: Channel, **options: Any) -> Any:
        try:
            return _read(channel, **options)
        except ValueError as error:
            log.error("dropped what came from a queue: %s", error)

    def deliver(transport: Transport, message: Any, queue: str) -> None:
        if queue in queues:  # what workers tell each other has another shape
            arguments(message)
        _deliver(transport, message, queue)

    channels, transports = cast(Any, Channel), cast(Any, Transport)
    channels._brpop_read, transports._deliver = read, deliver


def keep_clients() -> None:
    """Make kombu keep a channel's client, which it makes anew for each command.

    A message takes four, and to make a client takes longer than its command.
    """

    def create(channel: Any, asynchronous: bool = False) -> Any:
        if asynchronous:  # it has a connection to itself
            return _create_client(channel, asynchronous=True)
        kept = vars(channel).get("kept_client")
        if kept is None or kept.connection_pool is not channel.pool:
            kept = channel.kept_client = _create_client(channel)
        return kept

    cast(Any, Channel)._create_client = create


_create_client: Any = Channel._create_client
_read: Any = Channel._brpop_read
_deliver: Any = Transport._deliver
