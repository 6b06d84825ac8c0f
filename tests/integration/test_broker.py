"""A worker process and a broker that misbehaves: disorder, restarts, cut connections, losses."""

import random
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlmodel import col, func, select

from shared import ids, messages, queue
from shared.lifecycle import JobStatus, Lane
from shared.tables import Attempt, Job
from tests import sqlite
from tests.factories import Sessions, job_in, submitted
from tests.fakes.upstream import Say, ScriptedUpstream, WaitFor
from tests.stack import QUICK_LEASES, Stack, eventually
from tests.valkey import Valkey
from workers.fetching import MOST

BODY = b'{"messages":[{"role":"user","content":"Hello"}]}'
INTERACTIVE = queue.queue_key(Lane.INTERACTIVE)
GARBAGE = ("", "7", "null", "{}", "[1]", "not json", b"\xff\xfe", '{"headers":{"task":"x"}}')


class Shop:
    """A stack without an API: jobs are put into its database, and hinted, by hand."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.sessions = Sessions(stack.database_url)
        self.app = queue.connect(stack.redis_url)
        self.redis: redis.Redis = redis.Redis.from_url(
            stack.redis_url, socket_timeout=5, socket_connect_timeout=5
        )

    def submit(self, count: int = 1) -> list[str]:
        """The ids of so many new jobs, whose hints are said to be on their way."""
        with self.sessions() as session:
            return [submitted(session, body=BODY).id for _ in range(count)]

    def hint(self, *job_ids: str) -> None:
        """Send these hints; the worker's own sweep makes up for those that Redis does not take."""
        lane = Lane.INTERACTIVE.value
        hints = [messages.hint(queue.RUN_JOB, [job_id], {}, lane) for job_id in job_ids]
        with suppress(redis.RedisError):
            self.redis.lpush(INTERACTIVE, *hints)

    def submit_and_hint(self) -> list[str]:
        """A new job, and its hint."""
        job_ids = self.submit()
        self.hint(*job_ids)
        return job_ids

    def answers(self) -> bool:
        """Whether a worker says that it is there, over a connection of its own."""
        with self.app.connection_for_write() as connection:
            asked = self.app.control.inspect(limit=1, timeout=5, connection=connection)
            return bool(asked.ping())

    def calls(self) -> int:
        """How many hints its worker has begun to look at, or groups of them."""
        with self.app.connection_for_write() as connection:
            asked = self.app.control.inspect(limit=1, timeout=5, connection=connection)
            [said] = asked.stats().values()
        return int(said["total"][queue.RUN_JOB])

    def completed(self, job_ids: list[str]) -> bool:
        """Whether all of these are."""
        return self._count(Job, col(Job.id), job_ids, col(Job.status) == "completed") == len(
            job_ids
        )

    def tries(self, job_ids: list[str]) -> int:
        """How many attempts at these count."""
        counts = col(Attempt.outcome) != "handed_back"
        return self._count(Attempt, col(Attempt.job_id), job_ids, counts)

    def _count(self, table: Any, column: Any, job_ids: list[str], *conditions: Any) -> int:
        found = select(func.count()).select_from(table).where(column.in_(job_ids), *conditions)
        with self.sessions() as session:
            return session.exec(found).one()

    def close(self) -> None:
        """Let go of everything."""
        self.redis.close()
        self.app.close()
        self.sessions.close()


@contextmanager
def opened(stack: Stack) -> Iterator[Shop]:
    """A shop, closed in the end."""
    shop = Shop(stack)
    try:
        yield shop
    finally:
        shop.close()


@pytest.fixture
def shop(stack: Stack) -> Iterator[Shop]:
    """On each database."""
    with opened(stack) as shop:
        yield shop


@pytest.fixture
def sqlite_shop(tmp_path: Path, redis_server: Valkey, upstream: ScriptedUpstream) -> Iterator[Shop]:
    """For what has nothing to do with the database."""
    url = sqlite.fresh(tmp_path)
    with Stack(tmp_path, url, redis_server.url, upstream) as stack, opened(stack) as shop:
        yield shop


def test_disorder_in_the_queue_changes_nothing_but_the_delay(shop: Shop) -> None:
    """Hints ten times over, half of them missing, of jobs that ended or never were; garbage."""
    job_ids = shop.submit(100)
    with shop.sessions() as session:
        ended = [job_in(session, status).id for status in JobStatus if status.value[0] in "cef"]
    some = random.Random(7)
    hinted = some.sample(job_ids, 50) * 10 + [*ended, ids.new_id(), "nobody", ""] * 10
    some.shuffle(hinted)
    shop.hint(*hinted)
    eventually(lambda: shop.redis.llen(INTERACTIVE) == len(hinted))
    shop.redis.rpush(INTERACTIVE, *GARBAGE)
    shop.redis.lpush(INTERACTIVE, *GARBAGE)

    worker = shop.stack.worker()
    eventually(lambda: shop.completed(job_ids), 60)

    assert worker.running
    assert shop.tries(job_ids) == len(shop.stack.upstream.calls) == 100


def crash(server: Valkey, shop: Shop) -> None:
    """kill -9, and back again."""
    server.kill()
    server.restart()


def freeze(server: Valkey, shop: Shop) -> None:
    """Longer than any of the clients' timeouts."""
    with server.frozen():
        threading.Event().wait(6)


def empty(server: Valkey, shop: Shop) -> None:
    """As a replica takes over that had received nothing."""
    shop.redis.flushall()


def replace(server: Valkey, shop: Shop) -> None:
    """Another server at the same address, with nothing in it."""
    server.kill()
    shutil.rmtree(server.directory / "appendonlydir")
    server.restart()


def cut(server: Valkey, shop: Shop) -> None:
    """All connections, four times a second."""
    for _ in range(12):
        for kind in ("normal", "pubsub"):
            with suppress(redis.RedisError):
                shop.redis.client_kill_filter(_type=kind)
        threading.Event().wait(0.25)


def cut_again_and_again(server: Valkey, shop: Shop) -> None:
    """Twenty times, whenever the worker has come back and fetches hints."""
    for _ in range(20):
        eventually(lambda: fetching(shop), 20)
        shop.redis.client_kill_filter(_type="normal")


def fetching(shop: Shop) -> bool:
    """Whether a worker waits at the queues."""
    try:
        return any("b" in client["flags"] for client in shop.redis.client_list())
    except redis.RedisError:
        return False


FAULTS = (crash, freeze, empty, replace, cut, cut_again_and_again)


def test_a_worker_outlives_whatever_its_broker_does(
    sqlite_shop: Shop, redis_server: Valkey
) -> None:
    """Under load: it answers, loses and doubles no job, and needs no more than it did before."""
    shop = sqlite_shop
    worker = shop.stack.worker(SLUICE_HINT_TTL="2")
    first = shop.submit_and_hint()
    eventually(lambda: shop.completed(first), 30)
    process = psutil.Process(worker.pid)
    memory = process.memory_info().rss
    with load(shop) as job_ids:
        for fault in FAULTS:
            fault(redis_server, shop)
            after = shop.submit_and_hint()
            eventually(lambda after=after: shop.completed(after), 20)  # type: ignore[misc]
            eventually(shop.answers, 20)
            assert worker.running, fault.__name__
    eventually(lambda: shop.completed(job_ids), 30)

    assert shop.tries(job_ids) == len(job_ids)
    assert connections(process, redis_server) <= 64 + 12  # our own pool is full, Celery's is small
    assert process.memory_info().rss < memory + 40 * 1024 * 1024


@contextmanager
def load(shop: Shop) -> Iterator[list[str]]:
    """Twenty-five new jobs a second; their ids."""
    job_ids: list[str] = []
    stop = threading.Event()

    def submit() -> None:
        while not stop.wait(0.04):
            job_ids.extend(shop.submit_and_hint())

    feeder = threading.Thread(target=submit)
    feeder.start()
    try:
        yield job_ids
    finally:
        stop.set()
        feeder.join()


def connections(process: psutil.Process, server: Valkey) -> int:
    """How many a process has to a broker."""
    return sum(each.raddr[1:] == (server.port,) for each in process.net_connections())


def test_a_hint_that_dies_with_its_worker_is_sent_again(sqlite_shop: Shop) -> None:
    """The broker has handed it over, and nobody has begun."""
    shop = sqlite_shop
    job_ids = shop.submit_and_hint()
    eventually(lambda: shop.redis.exists(INTERACTIVE))
    shop.redis.rename(INTERACTIVE, "aside")
    # This one would not miss the hint itself.
    dying = shop.stack.worker(**QUICK_LEASES, SLUICE_HINT_TTL="60")

    def handed_over() -> bool:
        eventually(lambda: fetching(shop), 30)
        dying.send(signal.SIGSTOP)
        shop.redis.rename("aside", INTERACTIVE)
        if shop.redis.exists(INTERACTIVE):  # it was between two looks
            shop.redis.rename(INTERACTIVE, "aside")
            dying.send(signal.SIGCONT)
            return False
        return True

    eventually(handed_over, 30)
    dying.kill()
    assert shop.tries(job_ids) == 0
    shop.stack.worker(**QUICK_LEASES)
    eventually(lambda: shop.completed(job_ids), 30)

    assert shop.tries(job_ids) == 1


def test_hints_that_arrive_while_a_worker_stops_are_not_lost(sqlite_shop: Shop) -> None:
    """Those it has begun it hands back or finishes, the others wait for the next one."""
    shop = sqlite_shop
    leaving = shop.stack.worker()
    eventually(lambda: fetching(shop), 30)
    with load(shop) as job_ids:
        eventually(lambda: len(job_ids) > 10)
        leaving.send(signal.SIGTERM)
        assert leaving.wait() == 0
        eventually(lambda: len(job_ids) > 50)
    shop.stack.worker()
    eventually(lambda: shop.completed(job_ids), 30)

    assert shop.tries(job_ids) == len(job_ids)


def test_a_job_whose_api_dies_before_its_hint_left_is_run(sqlite_shop: Shop) -> None:
    """Between commit and hint: this API's Redis is nowhere."""
    stack = sqlite_shop.stack
    real = stack.environment["SLUICE_REDIS_URL"]
    stack.environment["SLUICE_REDIS_URL"] = "redis://127.0.0.1:1/0"
    api = stack.api()
    request = {"model": "test", "messages": [{"role": "user", "content": "Hello"}]}
    accepted = stack.http().post("/v1/jobs", json=request)
    api.kill()
    stack.environment["SLUICE_REDIS_URL"] = real
    stack.worker()
    job_ids = [ids.bare(accepted.json()["id"]) or ""]
    eventually(lambda: sqlite_shop.completed(job_ids), 30)

    assert sqlite_shop.tries(job_ids) == 1


def test_hints_that_wait_are_taken_several_at_a_time(sqlite_shop: Shop) -> None:
    """By whoever has room for them, the oldest first; what is no message is dropped among them."""
    shop = sqlite_shop
    job_ids = shop.submit(100)
    shop.hint(*job_ids[:50])
    eventually(lambda: shop.redis.llen(INTERACTIVE) == 50)
    shop.redis.lpush(INTERACTIVE, "not json")
    shop.hint(*job_ids[50:])
    eventually(lambda: shop.redis.llen(INTERACTIVE) == 101)
    shop.stack.worker()
    eventually(lambda: shop.completed(job_ids), 60)

    assert shop.tries(job_ids) == 100
    assert 100 / MOST <= shop.calls() < 20


def test_no_more_hints_are_taken_than_there_is_room_for(sqlite_shop: Shop) -> None:
    """What waits, waits where another worker sees it."""
    shop = sqlite_shop
    let_go = threading.Event()
    shop.stack.upstream.script("test", WaitFor(let_go), Say("Fine."))
    job_ids = shop.submit(20)
    shop.hint(*job_ids)
    eventually(lambda: shop.redis.llen(INTERACTIVE) == 20)
    shop.stack.worker(SLUICE_WORKER_CONCURRENCY="4")
    try:
        eventually(lambda: len(shop.stack.upstream.calls) == 4, 30)
        assert shop.redis.llen(INTERACTIVE) >= 15  # one may have come before it was its turn
    finally:
        let_go.set()
    eventually(lambda: shop.completed(job_ids), 60)

    assert shop.tries(job_ids) == 20
