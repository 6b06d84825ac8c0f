"""Hints on a real Valkey: what they say, and what happens while it is away."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from shared import connections, queue
from shared.lifecycle import Lane
from shared.sending import Hints
from tests.valkey import Valkey, valkey

INTERACTIVE = queue.queue_key(Lane.INTERACTIVE)


class Bench:
    """Hints on a server of their own, and the ids that were reported lost."""

    def __init__(self, server: Valkey, capacity: int, within: float) -> None:
        self.server = server
        self.lost: list[str] = []
        self.app: Celery = queue.connect(server.url)
        self.client = connections.open_redis(server.url)
        self.hints = Hints(self.client, self.lose, capacity=capacity, within=within)
        self.redis: redis.Redis = redis.Redis.from_url(server.url, decode_responses=True)

    async def lose(self, job_ids: list[str]) -> None:
        """Note that these hints were not sent."""
        self.lost += job_ids

    def messages(self, key: str = INTERACTIVE) -> list[dict[str, Any]]:
        """What waits in the queue, the oldest first."""
        waiting: Any = self.redis.lrange(key, 0, -1)
        return [json.loads(message) for message in reversed(waiting)]

    def hinted(self, key: str = INTERACTIVE) -> list[str]:
        """The jobs these messages name."""
        return [job_id for message in self.messages(key) for job_id in said(message)[0]]


def said(message: dict[str, Any]) -> Any:
    """A message's body: args, kwargs, and what Celery embeds."""
    return json.loads(base64.b64decode(message["body"]))


async def until(true: Callable[[], object], within: float = 10.0) -> None:
    """Return as soon as it is; the loop goes on meanwhile."""
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running_hints(
    directory: Path, *, capacity: int = 10_000, within: float = 5.0
) -> AsyncIterator[Bench]:
    """Hints and their server, both gone afterwards."""
    with valkey(directory, append_only=False) as server:
        bench = Bench(server, capacity, within)
        bench.hints.start()
        try:
            yield bench
        finally:
            await bench.hints.close(timedelta(seconds=5))
            await connections.close(bench.client)
            bench.redis.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Hints with room for all a test sends."""
    async with running_hints(tmp_path) as bench:
        yield bench


async def test_several_jobs_may_share_a_hint(bench: Bench) -> None:
    """Whoever looks which hints are in the queue finds each of them."""
    bench.hints.send(Lane.BATCH, ["a", "b", "c"], together=2)
    key = queue.queue_key(Lane.BATCH)
    await until(lambda: len(bench.messages(key)) == 2)

    assert [said(message)[0] for message in bench.messages(key)] == [["a", "b"], ["c"]]
    assert await queue.waiting(bench.client, Lane.BATCH) == {"a", "b", "c"}


async def test_a_hint_is_the_message_celery_itself_would_send(bench: Bench) -> None:
    """Field by field, but for the ids and who sent it; and it says nothing but the job's id."""

    @bench.app.task(name=queue.RUN_JOB, shared=False)
    def run_job(job_id: str) -> None:
        """Only its message matters."""

    run_job.apply_async(("a_job",), queue=Lane.INTERACTIVE.value)
    bench.hints.send(Lane.INTERACTIVE, ["a_job"])
    await until(lambda: len(bench.messages()) == 2)
    celerys, ours = bench.messages()

    assert said(ours)[:2] == [["a_job"], {}]
    assert said(ours) == said(celerys)
    assert ours["headers"]["id"] not in {celerys["headers"]["id"], "a_job"}
    for message in (celerys, ours):
        assert message["headers"]["root_id"] == message["headers"]["id"]
        for ids in ("id", "root_id", "origin"):
            del message["headers"][ids]
        for ids in ("correlation_id", "delivery_tag", "reply_to"):
            del message["properties"][ids]
        del message["body"]  # but for its spaces it is the same, as was said
    # Celery writes the arguments as they were given, a tuple here.
    assert celerys["headers"].pop("argsrepr") == "('a_job',)"
    assert ours["headers"].pop("argsrepr") == "['a_job']"
    assert ours == celerys


async def test_each_lane_has_a_list_of_its_own(bench: Bench) -> None:
    """Its length is what `queue_key` promises; the order is kept, and every hint has its own id."""
    jobs = [f"job_{number}" for number in range(2_500)]
    bench.hints.send(Lane.BATCH, jobs)
    bench.hints.send(Lane.INTERACTIVE, ["urgent"])
    await until(lambda: bench.redis.llen(INTERACTIVE) == 1)

    assert bench.hinted(queue.queue_key(Lane.BATCH)) == jobs
    assert len({message["headers"]["id"] for message in bench.messages("sluice:batch")}) == 2_500
    assert bench.lost == []


async def test_jobs_share_hints_only_while_workers_keep_up(bench: Bench) -> None:
    """What shares a hint with others may not wait for them; in a long queue each has its own."""

    async def send(name: str, jobs: int) -> list[list[Any]]:
        bench.hints.send(Lane.INTERACTIVE, [f"{name}-{number}" for number in range(jobs)])
        await until(lambda: f"{name}-{jobs - 1}" in bench.hinted())
        found = [said(message)[:2] for message in bench.messages()]
        return [hint for hint in found if hint[0][0].startswith(name)]

    before = await send("before", 2)
    bench.redis.delete(INTERACTIVE)
    await send("short", 1)
    shared = await send("shared", 18)
    bench.redis.lpush(INTERACTIVE, *bench.redis.lrange(INTERACTIVE, 0, -1) * 3)
    await send("long", 1)
    after = await send("after", 2)

    assert before == [[["before-0"], {}], [["before-1"], {}]]
    assert [len(ids) for ids, _ in shared] == [16, 2]
    assert [options for _, options in shared] == [{"wait": False}] * 2
    assert after == [[["after-0"], {}], [["after-1"], {}]]


async def test_hints_that_redis_did_not_take_are_reported_and_later_ones_are_sent(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits, nothing is raised, the log says it once, and all is well after a restart."""
    bench.hints.send(Lane.INTERACTIVE, ["before"])
    caplog.set_level("INFO", "shared.sending")
    await until(lambda: bench.hinted() == ["before"])
    bench.server.kill()
    began = time.monotonic()
    for name in ("one", "two", "three"):
        bench.hints.send(Lane.INTERACTIVE, [name])
        await until(lambda name=name: name in bench.lost)  # type: ignore[misc]
    assert time.monotonic() - began < 3
    bench.server.restart()
    bench.hints.send(Lane.INTERACTIVE, ["after"])
    await until(lambda: bench.hinted() == ["after"])
    bench.hints.send(Lane.INTERACTIVE, ["later"])
    await until(lambda: bench.hinted() == ["after", "later"])

    assert caplog.text.count("Redis is back") == 1
    assert bench.lost == ["one", "two", "three"]
    assert caplog.text.count("Redis is away") == 1


async def test_a_connection_that_died_unnoticed_loses_no_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh one is tried before anything is called lost; a hint sent twice does no harm."""
    async with running_hints(tmp_path, within=0.5) as bench:
        bench.hints.send(Lane.INTERACTIVE, ["before"])
        await until(lambda: bench.hinted() == ["before"])
        again = noticed(bench, monkeypatch)
        with bench.server.frozen():
            bench.hints.send(Lane.INTERACTIVE, ["after"])
            await asyncio.wait_for(again.wait(), 10)
        await bench.hints.close()

        assert set(bench.hinted()) == {"before", "after"}
        assert bench.lost == []


def noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the next connection is made: the second try begins."""
    again = asyncio.Event()
    pool: Any = bench.client.connection_pool
    make = pool.make_connection

    def made() -> Any:
        again.set()
        return make()

    monkeypatch.setattr(pool, "make_connection", made)
    return again


async def test_a_hint_that_is_called_lost_may_have_arrived(tmp_path: Path) -> None:
    """Redis has no receipt: the feeder sends such a hint a second time, and the claim decides."""
    async with running_hints(tmp_path, within=0.3) as bench:
        bench.hints.send(Lane.INTERACTIVE, ["before"])
        await until(lambda: bench.hinted() == ["before"])
        with bench.server.frozen():
            bench.hints.send(Lane.INTERACTIVE, ["after"])
            await until(lambda: bench.lost == ["after"])
        await until(lambda: bench.hinted() == ["before", "after"])


async def test_the_jobs_whose_hints_wait_are_known(bench: Bench) -> None:
    """All of them, however long the queue, and whatever else is in it."""
    jobs = {f"job_{number}" for number in range(2 * queue.PAGE + 1)}
    bench.hints.send(Lane.INTERACTIVE, list(jobs))
    await until(lambda: bench.redis.llen(INTERACTIVE) == len(jobs))
    bench.redis.lpush(INTERACTIVE, "garbage", "{}", "7")

    assert await queue.waiting(bench.client, Lane.INTERACTIVE) == jobs
    assert await queue.waiting(bench.client, Lane.BATCH) == set()


async def test_closing_sends_what_still_waits(bench: Bench) -> None:
    """A stopping API has hinted all that it accepted."""
    for number in range(100):
        bench.hints.send(Lane.INTERACTIVE, [str(number)])
    await bench.hints.close()

    assert bench.hinted() == [str(number) for number in range(100)]


async def test_a_redis_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop goes on: what finds no room is dropped, and left to the sweep."""
    async with running_hints(tmp_path, capacity=1) as bench:
        with bench.server.frozen():
            began = time.monotonic()
            for number in range(100):
                bench.hints.send(Lane.INTERACTIVE, [str(number)])
                await asyncio.sleep(0)  # the task has its turn, and hangs with the first
            took = time.monotonic() - began
        await bench.hints.close()

        assert took < 0.4
        assert bench.hinted() == ["0", "1"]
        assert caplog.text.count("hints dropped") == 98


def test_a_channel_keeps_its_client(redis_server: Valkey) -> None:
    """A message takes several commands, and kombu would make a client for each of them."""
    with queue.connect(redis_server.url).connection_for_write() as connection:
        channel = connection.channel()
        with channel.conn_or_acquire() as one, channel.conn_or_acquire() as other:
            kept = one is other

        assert kept
        assert channel.client is not one  # it waits for messages on a connection of its own


def test_a_channel_that_connects_anew_has_another_client(redis_server: Valkey) -> None:
    """What it keeps belongs to a pool of connections, which goes when Redis does."""
    with queue.connect(redis_server.url).connection_for_write() as connection:
        channel = connection.channel()
        with channel.conn_or_acquire() as before:
            channel._disconnect_pools()
        with channel.conn_or_acquire() as after:
            assert after.ping()

        assert after.connection_pool is not before.connection_pool


def test_a_sentinel_url_names_its_master() -> None:
    """Kombu takes the sentinels from the URL and the master from its options."""
    app = queue.connect("sentinel://:pw@one:26379;sentinel://:pw@two:26379/0?master_name=main")

    with app.connection_for_write() as connection:
        assert connection.alt == ["sentinel://:pw@one:26379", "sentinel://:pw@two:26379/0"]
        assert connection.transport_options["master_name"] == "main"


def test_tls_checks_the_servers_certificate() -> None:
    """Kombu would accept any, unless the URL says what it wants."""
    with queue.connect("rediss://example.com:6380/0").connection_for_write() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
