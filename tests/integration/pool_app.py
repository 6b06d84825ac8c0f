"""A worker process for the pool's tests: `python -m tests.integration.pool_app`.

Its tasks note what happens to them in the Redis list `noted`. `POOL_APP` in the environment may
name one oddity: `no-guard`, `broken-lifespan`, `long-drain`.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.asyncio
from celery import Task
from kombu.transport.redis import Transport

from shared import queue
from workers import process

GRACE = 1.5
ODDITY = os.environ.get("POOL_APP", "")

connections = redis.asyncio.BlockingConnectionPool.from_url(
    os.environ["POOL_APP_REDIS"], decode_responses=True, socket_timeout=None, max_connections=20
)
store = redis.asyncio.Redis(connection_pool=connections)
app = queue.connect(os.environ["POOL_APP_REDIS"])
idle = asyncio.Event()
idle.set()
opened = asyncio.Event()
running = 0

if ODDITY == "no-guard":
    Transport.connection_errors = tuple(
        error for error in Transport.connection_errors if error is not AttributeError
    )


async def note(what: str) -> None:
    """Append to what the test reads, through connections that a restart may have broken."""
    for _ in range(5):
        with suppress(redis.RedisError):
            await store.rpush("noted", what)
            return


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """Listen to the test until the worker ends; break when it says so."""
    if ODDITY == "broken-lifespan":
        raise ConnectionError("no database")
    await note("entered")
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        yield
        listening.cancel()
    await note("left")


async def listen() -> None:
    """Open the gate when told to, or die."""
    while True:
        try:
            popped = await store.blpop(["orders"], timeout=0)
        except redis.RedisError:
            await asyncio.sleep(0.05)  # a test restarts Redis
            continue
        if popped and popped[1] == "crash":
            raise RuntimeError("the background work died")
        opened.set()


async def drain(_: object) -> None:
    """Give what runs a moment to finish."""
    await note("draining")
    grace = 60 if ODDITY == "long-drain" else GRACE
    try:
        async with asyncio.timeout(grace):
            await idle.wait()
    except TimeoutError:
        await note("out of patience")


async def nap(name: str, seconds: float) -> str:
    """Sleep, and say how it ended."""
    global running
    running += 1
    idle.clear()
    await note(f"{name} started")
    try:
        await asyncio.sleep(seconds)
        await note(f"{name} done")
    except asyncio.CancelledError:
        await note(f"{name} cancelled")
        raise
    finally:
        running -= 1
        if not running:
            idle.set()
    return name


async def late_nap(seconds: float) -> None:
    """Sleep with the message un-acknowledged."""
    await note("late started")
    await asyncio.sleep(seconds)


async def crowd() -> None:
    """Stay until the gate is opened."""
    await store.incr("present")
    await opened.wait()
    await store.decr("present")


async def broken() -> None:
    """Fail as a bug would."""
    raise ZeroDivisionError("a bug")


def plain(self: Task, word: str) -> None:
    """A synchronous task, which can see its own request."""
    with redis.Redis.from_url(os.environ["POOL_APP_REDIS"]) as connection:
        connection.rpush("noted", f"{word} from {self.request.id}")


for name, task, options in (
    ("nap", nap, {}),
    ("late_nap", late_nap, {"acks_late": True}),
    ("crowd", crowd, {}),
    ("broken", broken, {}),
    ("plain", plain, {"bind": True}),
):
    app.task(name=name, shared=False, **options)(task)

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    app.lifespan = lifespan
    app.drain = drain
    sys.exit(
        process.run_worker(
            app,
            concurrency=int(sys.argv[1]),
            name="test",
            queues=queue.QUEUES,
            log_level="WARNING",
        )
    )
