"""The control loops: lost hints are sent again, dead workers' jobs taken back, by one leader."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlmodel import Session

from shared import connections, db, jobs, keys, leadership, leases, messages, queue, streams
from shared.feeding import ROLE
from shared.jobs import Submission
from shared.lifecycle import JobStatus, Lane
from shared.tables import Job, Leader
from tests.factories import no_models
from tests.valkey import Valkey
from workers.control import Control, Stillness
from workers.settings import WorkerSettings

T = TypeVar("T")


@dataclass
class Room:
    """A database, a broker, and the control loops of as many processes as are asked for."""

    url: str
    settings: WorkerSettings
    tx: db.Transactions
    redis: Redis
    account_id: str
    started: list[Control] = field(default_factory=list)

    def control(self) -> Control:
        """Start the loops as a process would."""
        control = Control(self.settings, self.tx, self.redis, no_models)
        control.start()
        self.started.append(control)
        return control

    async def submit(
        self,
        count: int,
        *,
        lane: Lane = Lane.INTERACTIVE,
        max_attempts: int = 3,
        attended_for: int | None = None,
    ) -> list[Job]:
        """So many jobs, as if their hints were to follow."""
        new = [
            Submission(
                account_id=self.account_id,
                request_id="req",
                model="m",
                body=b"{}",
                lane=lane,
                max_attempts=max_attempts,
                attended_for=attended_for,
                hinted=lane == Lane.INTERACTIVE,
            )
            for _ in range(count)
        ]
        return await self.tx(jobs.submit_all, new)

    async def hints(self, lane: Lane = Lane.INTERACTIVE) -> int:
        """How many jobs the broker's messages name; -1 while it is away."""
        try:
            waiting: Any = self.redis.lrange(queue.queue_key(lane.value), 0, -1)
            return sum(len(messages.arguments(message)) for message in await waiting)
        except RedisError:
            return -1

    async def hinted(self) -> bool:
        """Whether there is one; twice is no more than once when it was sent in doubt."""
        return await self.hints() > 0

    async def turned(self, times: int = 4) -> bool:
        """Whether the loops have turned so often."""
        leader = await self.tx.read(Session.get, Leader, ROLE)
        return leader is not None and leader.terms >= times

    async def status(self, job: Job) -> str:
        """A job's, now."""
        return (await self.tx.read(jobs.find, self.account_id, job.id)).status


@pytest.fixture
async def room(database_url: str, redis_server: Valkey) -> AsyncIterator[Room]:
    """Quick settings: a hint is stale after a second, a worker dead after two."""
    settings = WorkerSettings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_server.url),
        hint_ttl=timedelta(seconds=1),
        hint_window=100,
        lease_ttl=timedelta(seconds=2),
        lease_beat=timedelta(seconds=0.3),
        lease_margin=timedelta(seconds=0.5),
    )
    tx = db.Transactions(db.connect(database_url))
    redis = connections.open_redis(redis_server.url)
    key, _ = await tx(keys.create, account="a")
    opened = Room(database_url, settings, tx, redis, key.account_id)
    try:
        yield opened
    finally:
        for control in opened.started:
            await control.stop()
        tx.close()
        await redis.aclose()


async def until(look: Callable[[], Awaitable[T]], expected: T, within: float = 15.0) -> None:
    """Wait for something, in turns of the loop."""
    async with asyncio.timeout(within):
        while await look() != expected:
            await asyncio.sleep(0.05)


async def test_lost_hints_are_sent_again(room: Room) -> None:
    """Jobs whose hints never arrived, or vanished with Redis, get new ones."""
    await room.submit(5)
    room.control()
    await until(room.hints, 5)

    await room.redis.flushall()
    await until(room.hints, 5)


async def test_what_waits_in_the_broker_is_not_hinted_over_and_over(room: Room) -> None:
    """A backlog is no loss: hints that are only old are left alone, and the window holds."""
    await room.submit(150)
    room.control()
    await until(room.hints, 110)  # all were lost, and for those it is a tenth wider

    # Several times the age at which a hint would be stale.
    for _ in range(40):
        assert await room.hints() == 110
        await asyncio.sleep(0.1)


async def test_batch_jobs_leave_the_last_third_of_the_slots_alone(room: Room) -> None:
    """They are let in as slots are free, never more."""
    await room.tx(leases.register, pid=1, slots=9, models=["m"])
    await room.submit(20, lane=Lane.BATCH)
    room.control()
    await until(lambda: room.hints(Lane.BATCH), 6)

    for _ in range(25):
        assert await room.hints(Lane.BATCH) == 6
        await asyncio.sleep(0.1)


async def test_a_silent_workers_job_is_taken_back(room: Room) -> None:
    """Its counter stood still for a whole lease; nobody's clock was asked."""
    [job] = await room.submit(1)
    silent = await room.tx(leases.register, pid=1, slots=1, models=["m"])
    assert await room.tx(leases.claim, job.id, silent) is not None
    room.control()

    await until(lambda: room.status(job), JobStatus.QUEUED.value)

    assert await room.tx(leases.beat, silent) is None


async def test_a_job_that_is_given_up_ends_its_log(room: Room) -> None:
    """Whoever reads it learns of the end, and the row knows the end's number."""
    [job] = await room.submit(1, max_attempts=1)
    silent = await room.tx(leases.register, pid=1, slots=1, models=["m"])
    assert await room.tx(leases.claim, job.id, silent) is not None
    await streams.mark(room.redis, job.id, 1, streams.STARTED + b"{}", otherwise=4, ttl_ms=60_000)
    room.control()
    await until(lambda: room.status(job), JobStatus.FAILED.value)

    async def end() -> tuple[bytes, int]:
        entry = await streams.last(room.redis, job.id)
        assert entry is not None
        return entry.kind, (await room.tx.read(jobs.find, room.account_id, job.id)).last_seq

    await until(end, (streams.END, 5))


async def test_a_beating_worker_keeps_its_job(room: Room) -> None:
    """As long as it beats, however long the job takes."""
    [job] = await room.submit(1)
    busy = await room.tx(leases.register, pid=1, slots=1, models=["m"])
    assert await room.tx(leases.claim, job.id, busy) is not None
    room.control()

    for _ in range(12):
        assert await room.tx(leases.beat, busy) == [(job.id, 1, False)]
        await asyncio.sleep(0.3)
    assert await room.status(job) == JobStatus.IN_PROGRESS


async def test_another_process_takes_over_when_the_leader_leaves(room: Room) -> None:
    """At once: nobody has to watch it stand still."""
    first = room.control()
    await room.submit(1)
    await until(room.hints, 1)
    room.control()
    await first.stop()
    room.started.remove(first)
    await room.redis.flushall()

    await until(room.hints, 1)


async def test_another_process_takes_over_from_a_leader_that_died(room: Room) -> None:
    """It has to watch the leader stand still for a while first."""
    assert await room.tx(leadership.lead, ROLE, "ctl_dead", None) == ("ctl_dead", 0)
    await room.submit(1)
    room.control()

    await until(room.hints, 1)


async def test_after_a_leaders_death_no_reader_counts_as_gone_at_once(room: Room) -> None:
    """The database may have been away with it; soon every api has noted again who reads there."""
    assert await room.tx(leadership.lead, ROLE, "ctl_dead", None) == ("ctl_dead", 0)
    [job] = await room.submit(1, attended_for=-1)
    room.control()

    await until(room.turned, True)

    assert await room.status(job) == JobStatus.QUEUED


async def test_a_reader_that_its_api_cannot_note_is_heard(room: Room) -> None:
    """An api without a way to the database still listens for those who read there."""
    heard, left = [(await room.submit(1, attended_for=-1))[0] for _ in range(2)]
    bell = room.redis.pubsub()
    await bell.subscribe(streams.log_name(heard.id))
    assert (await bell.get_message(timeout=5)) is not None
    room.control()
    await until(lambda: room.status(left), JobStatus.CANCELLED.value)
    assert await room.status(heard) == JobStatus.QUEUED

    await bell.aclose()  # type: ignore[no-untyped-call]
    await room.tx(jobs.attend, [heard.id], -1)

    await until(lambda: room.status(heard), JobStatus.CANCELLED.value)


async def test_while_redis_is_away_nobody_is_given_up(room: Room, redis_server: Valkey) -> None:
    """Who reads there, at an api that cannot note it, cannot be heard either."""
    [job] = await room.submit(1, attended_for=-1)
    redis_server.kill()
    room.control()
    await until(lambda: room.turned(8), True)
    assert await room.status(job) == JobStatus.QUEUED
    redis_server.restart()

    await until(lambda: room.status(job), JobStatus.CANCELLED.value, 30)


async def test_what_a_stalled_database_hides_is_no_silence() -> None:
    """Between two looks that were far apart nobody may have been able to beat."""
    stillness = Stillness(longest_look=0.02)
    stillness.watch({"a": 1})
    await asyncio.sleep(0.5)

    assert stillness.watch({"a": 1, "b": 1}) == {"a": 0.02, "b": 0.0}
    assert stillness.watch({"a": 2}) == {"a": 0.0}


async def test_the_loops_need_no_redis(room: Room, redis_server: Valkey) -> None:
    """With Redis away dead workers are still found, and hints go out once it is back."""
    [job] = await room.submit(1)
    silent = await room.tx(leases.register, pid=1, slots=1, models=["m"])
    assert await room.tx(leases.claim, job.id, silent) is not None
    room.control()
    redis_server.kill()
    await until(lambda: room.status(job), JobStatus.QUEUED.value, 30)
    redis_server.restart()

    await until(room.hinted, True, 30)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_loops_do_not_wait_for_a_redis_that_hangs(
    room: Room, redis_server: Valkey
) -> None:
    """Turn follows on turn, or another process would take the leader for dead."""
    [job] = await room.submit(1)
    silent = await room.tx(leases.register, pid=1, slots=1, models=["m"])
    assert await room.tx(leases.claim, job.id, silent) is not None

    with redis_server.frozen():
        room.control()
        await until(room.turned, True)
        await until(lambda: room.status(job), JobStatus.QUEUED.value)

    await until(room.hinted, True)
