"""The log and the bell: whatever happens to Redis, a reader gets every delta once and in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import orjson
import pytest
from redis.asyncio import Redis
from sqlmodel import Session

from api.following import FROM_START, Follower
from api.hub import BUFFER, Bell, Hub
from shared import connections, db, endings, jobs, keys, leases, streams
from shared.errors import Fault, StreamExpired
from shared.jobs import Submission
from shared.outcomes import Completed, Retry, Said
from shared.streams import DELTAS, END, RETRYING, STARTED, Entry
from shared.tables import Job, JobContent
from tests.factories import taken
from tests.proxy import Link, through
from tests.valkey import Valkey
from workers.pace import Pace
from workers.publisher import UNHEARD, JobLog, Publisher, Unread

BOUND = 1_000_000
SOON = timedelta(0)


@dataclass
class Desk:
    """The writing and the reading side in one process, with a job that runs."""

    tx: db.Transactions
    redis: Redis
    publisher: Publisher
    hub: Hub
    worker_id: str
    claim: leases.Claim

    async def log(self) -> JobLog:
        """The log of the job's attempt."""
        job = self.claim.job
        if job.attempt == 1:
            return self.publisher.begin(job.id, every=0.0)
        opened = await self.publisher.open(job.id, job.attempt, every=0.0)
        assert opened is not None
        return opened

    def follower(
        self, after: int = FROM_START, job: Job | None = None, since: Bell | None = None
    ) -> Follower:
        """A reader that has seen so much, or has heard what this bell has."""
        return Follower(self.tx, self.hub, job or self.claim.job, after=after, since=since)

    async def again(self) -> None:
        """The attempt fails, and the job is claimed anew."""
        fault = Fault(502, "upstream_error", "upstream_error", "It hung up.")
        await self.tx(leases.settle, self.claim.lease, Retry(fault, after=SOON))
        claim = await self.tx(taken, self.claim.job.id, self.worker_id)
        assert claim is not None
        self.claim = claim

    async def listened_to(self) -> None:
        """Wait until somebody reads."""
        async with asyncio.timeout(10):
            while not self.hub.readers:
                await asyncio.sleep(0.01)

    async def finish(self, job_log: JobLog | Unread, *, announce: bool = True) -> Job:
        """Settle the job with what its log holds, and say so."""
        said = Said(
            response=b"{}",
            log=b"\n".join(job_log.lines),
            first_seq=job_log.first_seq,
            deltas=len(job_log.lines),
        )
        job = await self.tx(leases.settle, self.claim.lease, Completed(said))
        assert job is not None
        if announce:
            end = streams.end_payload(job.status)
            await asyncio.wait_for(job_log.close(end, end), 10)
        return job


@pytest.fixture
async def desk(database_url: str, redis_server: Valkey) -> AsyncIterator[Desk]:
    """A job in a worker's hands, and somebody who may read it."""
    async with _open(database_url, redis_server) as opened:
        yield opened


@asynccontextmanager
async def _open(database_url: str, redis_server: Valkey, *, others: int = 0) -> AsyncIterator[Desk]:
    tx = db.Transactions(db.connect(database_url))
    redis = connections.open_redis(redis_server.url)
    publisher, hub = Publisher(redis, Pace(range(others)), bound=BOUND), Hub(redis)
    publisher.start()
    hub.start()
    key, _ = await tx(keys.create, account="a")
    new = Submission(account_id=key.account_id, request_id="req", model="m", body=b"{}")
    job = await tx(jobs.submit, new)
    worker_id = await tx(leases.register, pid=1, slots=1, models=["m"])
    claim = await tx(leases.claim, job.id, worker_id)
    assert claim is not None
    try:
        yield Desk(tx, redis, publisher, hub, worker_id, claim)
    finally:
        await hub.stop()
        await publisher.stop()
        tx.close()
        await redis.aclose()


def delta(number: int) -> bytes:
    """A delta that says its number."""
    return orjson.dumps({"choices": [{"index": 0, "delta": {"content": f"{number} "}}]})


async def say(job_log: JobLog, count: int, *, pause: float = 0.0) -> None:
    """Say so many deltas, numbered on."""
    for _ in range(count):
        job_log.append([delta(job_log.next_seq)], job_log.next_seq)
        await asyncio.sleep(pause)


async def read(follower: Follower) -> list[Entry]:
    """Everything to the end."""
    found: list[Entry] = []
    async with asyncio.timeout(30):
        async for entries in follower.entries(quiet=0.2):
            found += entries
    assert found[-1].kind == END
    return found


def numbers(entries: list[Entry]) -> list[int]:
    """The numbers of the deltas; each must say its own."""
    found = []
    for entry in entries:
        for seq, line in enumerate(entry.deltas, entry.first_seq):
            assert line == delta(seq)
            found.append(seq)
    return found


@pytest.mark.parametrize("after", [FROM_START, 1, 7, 25, 49, 50])
async def test_a_reader_gets_exactly_what_comes_after_its_cursor(desk: Desk, after: int) -> None:
    """Live, and again from the archive."""
    job_log = await desk.log()
    await say(job_log, 20)
    reading = asyncio.create_task(read(desk.follower(after)))
    await say(job_log, 30, pause=0.001)
    job = await desk.finish(job_log)

    rest = list(range(max(after, 0) + 1, 51))
    assert numbers(await reading) == rest
    await desk.redis.flushall()
    assert numbers(await read(desk.follower(after, job))) == rest


async def test_a_line_is_read_when_it_has_ended(desk: Desk) -> None:
    """It has no log: the bell rings once, and the reader, who would wait for ever, is sent on."""
    job = desk.claim.job
    job_log = desk.publisher.unread(job.id, job.attempt)

    async def read_patiently() -> list[Entry]:
        parts = [part async for part in desk.follower().entries(quiet=3600)]
        return [entry for part in parts for entry in part]

    reading = asyncio.create_task(read_patiently())
    await desk.listened_to()
    for number in (1, 2):
        job_log.append([delta(number)], number)
    await desk.finish(job_log)

    async with asyncio.timeout(10):
        assert numbers(await reading) == [1, 2]
    assert await desk.redis.keys("*") == []


async def test_a_line_that_ends_in_no_workers_hands_is_told(desk: Desk) -> None:
    """Without a trace in Redis either."""
    line = Submission(
        account_id=desk.claim.job.account_id,
        request_id="req",
        model="m",
        body=b"{}",
        batch_id="batch_1",
    )
    job = await desk.tx(jobs.submit, line)
    reading = asyncio.create_task(read(desk.follower(job=job)))
    await desk.listened_to()
    ended = await desk.tx(jobs.cancel, job.account_id, job.id)
    await endings.announce(desk.tx, desk.redis, ended)

    assert [entry.fields["status"] for entry in await reading] == ["cancelled"]
    assert await desk.redis.keys("*") == []


async def test_dropped_connections_leave_no_gap(desk: Desk) -> None:
    """The bell is cut off again and again; what it lost is read from the log."""
    job_log = await desk.log()
    readers = [asyncio.create_task(read(desk.follower())) for _ in range(20)]
    for _ in range(8):
        await say(job_log, 40, pause=0.002)
        await desk.redis.client_kill_filter(_type="pubsub")
    await desk.finish(job_log)

    for reading in readers:
        assert numbers(await reading) == list(range(1, 321))


async def test_an_earlier_attempt_can_write_no_more(desk: Desk) -> None:
    """The log itself refuses a worker that lost its lease, and nobody hears of what it said."""
    first = await desk.log()
    await say(first, 5)
    reading = asyncio.create_task(read(desk.follower()))
    await desk.listened_to()
    await desk.again()
    second = await desk.log()

    await say(first, 1)
    await asyncio.wait_for(first.fenced.wait(), 10)
    await say(second, 3)
    await desk.finish(second)

    entries = await reading
    assert [entry.kind for entry in entries if entry.kind == RETRYING] == [RETRYING]
    assert numbers(entries) == [1, 2, 3, 4, 5, 7, 8, 9]
    assert entries[-1].attempt == 2


@pytest.mark.parametrize("emptied", [False, True])
async def test_a_reader_learns_that_what_it_saw_was_said_in_vain(
    desk: Desk, redis_server: Valkey, emptied: bool
) -> None:
    """Whether it was there or comes back after the end: first the marker, then the new text."""
    first = await desk.log()
    await say(first, 5)
    reading = asyncio.create_task(read(desk.follower()))
    await desk.listened_to()
    await desk.again()
    if emptied:
        await desk.redis.flushall()
    second = await desk.log()
    await say(second, 3)
    job = await desk.finish(second)
    new = list(range(second.first_seq, second.first_seq + 3))

    for entries in (await reading, await read(desk.follower(3, job))):
        [marker] = [entry for entry in entries if entry.kind == RETRYING]
        assert marker.fields == {"attempt": 2, "discard_from_seq": 1}
        assert numbers(entries[entries.index(marker) :]) == new
    assert numbers(await read(desk.follower(job=job))) == new
    assert numbers(await read(desk.follower(new[0], job))) == new[1:]


async def test_an_emptied_redis_is_healed_by_the_archive(desk: Desk) -> None:
    """The log is lost in the middle: the reader waits, and gets the rest from the row."""
    job_log = await desk.log()
    await say(job_log, 10)
    late = desk.follower()
    await desk.redis.flushall()
    reading = asyncio.create_task(read(late))
    await say(job_log, 10, pause=0.01)
    await desk.finish(job_log)

    assert numbers(await reading) == list(range(1, 21))


async def test_redis_away_delays_but_loses_nothing(desk: Desk, redis_server: Valkey) -> None:
    """Deltas wait in the worker while Redis restarts."""
    job_log = await desk.log()
    reading = asyncio.create_task(read(desk.follower()))
    await say(job_log, 10, pause=0.005)
    redis_server.kill()
    await say(job_log, 200)
    redis_server.restart()
    await say(job_log, 10, pause=0.005)
    await desk.finish(job_log)

    assert numbers(await reading) == list(range(1, 221))
    assert desk.publisher.held == 0


async def test_what_waits_for_redis_is_bounded(desk: Desk, redis_server: Valkey) -> None:
    """Past the bound the upstream has to wait, until Redis is back."""
    job_log = await desk.log()
    redis_server.kill()
    while desk.publisher.held <= BOUND:
        await say(job_log, 100)
    waiting = asyncio.create_task(desk.publisher.room())
    done, _ = await asyncio.wait({waiting}, timeout=0.2)

    assert not done
    redis_server.restart()
    await asyncio.wait_for(waiting, 15)


async def test_readers_can_be_woken(desk: Desk) -> None:
    """When the process is about to stop even the quietest of them learns of it at once."""
    async with desk.hub.listen(desk.claim.job.id) as bell:
        bell.caught_up()
        waiting = asyncio.create_task(bell.wait(60))
        await asyncio.sleep(0)
        desk.hub.wake()

        assert await asyncio.wait_for(waiting, 10) == []


async def test_a_bell_that_was_there_first_has_missed_nothing(desk: Desk) -> None:
    """It listens before there is anything to be said; once there may be, a late word from Redis
    sends it to look, and so does every later connection."""

    async def confirmed(bell: Bell) -> bool:
        while bell.early and not bell.missed:
            await asyncio.sleep(0.01)
        return not bell.missed

    with desk.hub.listening("early") as bell:
        assert await asyncio.wait_for(confirmed(bell), 10)
        await desk.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        async with asyncio.timeout(10):
            while not bell.missed:
                await asyncio.sleep(0.01)
    with desk.hub.listening("late") as bell:
        bell.early = False
        assert await bell.wait(10) == []
        assert bell.missed


async def test_the_reader_of_a_new_job_goes_on_from_what_its_bell_has_heard(desk: Desk) -> None:
    """It does not ask the log, which holds nothing any more."""
    with desk.hub.listening(desk.claim.job.id) as bell:
        async with asyncio.timeout(10):
            while bell.early:
                await asyncio.sleep(0.01)
        job_log = await desk.log()
        await say(job_log, 5)
        heard: list[bytes] = []
        async with asyncio.timeout(10):
            while not heard or streams.parse_message(heard[-1]).seq < 5:
                heard += await bell.wait(1)
        for message in heard:
            bell.ring(message)
        await desk.redis.flushall()
        reading = asyncio.create_task(read(desk.follower(since=bell)))
        await say(job_log, 5, pause=0.001)
        await desk.finish(job_log)

        assert numbers(await reading) == list(range(1, 11))


async def test_the_reader_of_a_new_job_asks_the_log_when_its_bell_came_late(desk: Desk) -> None:
    """What was said before Redis confirmed was said to nobody."""
    job_log = await desk.log()
    await say(job_log, 5)
    async with asyncio.timeout(10):
        while (last := await streams.last(desk.redis, desk.claim.job.id)) is None or last.seq < 5:
            await asyncio.sleep(0.01)
    with desk.hub.listening(desk.claim.job.id) as bell:
        bell.early = False
        reading = asyncio.create_task(read(desk.follower(since=bell)))
        await desk.finish(job_log)

        assert numbers(await reading) == list(range(1, 6))


async def test_a_slow_reader_is_sent_to_the_log(desk: Desk) -> None:
    """It neither slows the others nor fills the memory, and misses nothing."""
    job_log = await desk.log()
    follower = desk.follower()
    batches = follower.entries(quiet=0.2)
    await anext(batches)
    for _ in range(BUFFER + 50):
        await say(job_log, 1)
        await asyncio.sleep(0.001)
    await desk.finish(job_log)

    found: list[Entry] = []
    async with asyncio.timeout(20):
        async for entries in batches:
            found += entries
    assert numbers(found) == list(range(1, BUFFER + 51))


async def test_an_end_that_comes_while_deltas_are_on_their_way_follows_them(
    desk: Desk,
) -> None:
    """It does not wait for something else to be said."""
    job_log = await desk.log()
    await say(job_log, 1)
    async with asyncio.timeout(5):
        while desk.publisher.held:
            await asyncio.sleep(0.01)
        await desk.redis.client_pause(500)
        await say(job_log, 1)
        while desk.publisher.held <= len(delta(1)):  # not yet packed for the way
            await asyncio.sleep(0.01)
        end = streams.end_payload("completed")
        await job_log.close(end, end)

    last = await streams.last(desk.redis, desk.claim.job.id)
    assert last is not None
    assert last.kind == END


async def test_what_redis_has_no_room_for_is_kept(desk: Desk) -> None:
    """A refusal is not the answer that it is there already; with room again, all goes on."""
    job_log = await desk.log()
    await say(job_log, 1)
    async with asyncio.timeout(10):
        while desk.publisher.held:
            await asyncio.sleep(0.01)
        await desk.redis.config_set("maxmemory", 1)
        await say(job_log, 3)
        while "errorstat_OOM" not in await desk.redis.info("errorstats"):
            await asyncio.sleep(0.01)
        await desk.redis.config_set("maxmemory", 0)
        await desk.finish(job_log)

    entries = await streams.read(desk.redis, desk.claim.job.id)
    assert numbers(entries) == [1, 2, 3, 4]


async def test_a_lost_end_is_found_in_the_row(desk: Desk) -> None:
    """The worker dies between its commit and the last message."""
    job_log = await desk.log()
    await say(job_log, 5)
    reading = asyncio.create_task(read(desk.follower()))
    await desk.listened_to()
    await desk.finish(job_log, announce=False)

    assert numbers(await reading) == [1, 2, 3, 4, 5]


async def test_nothing_left_is_410(desk: Desk) -> None:
    """When log and archive are gone the reader is told where the result is."""
    job_log = await desk.log()
    await say(job_log, 3)
    job = await desk.finish(job_log)
    await desk.redis.flushall()

    def forget(session: Session) -> None:
        session.delete(session.get_one(JobContent, job.id))
        session.flush()
        session.add(JobContent(job_id=job.id, request=b"{}"))

    await desk.tx(forget)

    with pytest.raises(StreamExpired, match=job.id):
        await read(desk.follower(job=job))


async def test_jobs_nobody_streams_are_logged_once_a_second(desk: Desk) -> None:
    """Their deltas gather; the end takes along what is left."""
    opened = desk.publisher.begin(desk.claim.job.id, every=1.0)
    await say(opened, 100, pause=0.02)
    await desk.finish(opened)

    entries = await streams.read(desk.redis, desk.claim.job.id)
    assert entries[0].kind == STARTED
    assert 1 <= len([entry for entry in entries if entry.kind == DELTAS]) <= 3
    assert numbers(entries) == list(range(1, 101))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_words_of_one_among_many_share_entries(
    database_url: str, redis_server: Valkey
) -> None:
    """A moment passes between two writes; nothing is lost, and the end waits for no more."""
    async with _open(database_url, redis_server, others=10_000) as desk:
        opened = desk.publisher.begin(desk.claim.job.id, every=0.0)
        await say(opened, 100, pause=0.001)
        await desk.finish(opened)

        entries = await streams.read(desk.redis, desk.claim.job.id)
    assert len([entry for entry in entries if entry.kind == DELTAS]) < 50
    assert numbers(entries) == list(range(1, 101))


async def test_bells_are_rung_in_any_number_and_again_after_a_cut(desk: Desk) -> None:
    """Whatever has been read of Redis's word on those before."""
    hearing = desk.redis.pubsub(ignore_subscribe_messages=True)
    await hearing.subscribe("bell")
    await hearing.get_message(timeout=10)

    async def heard(upto: int) -> list[int]:
        found: list[int] = []
        async with asyncio.timeout(10):
            while not found or found[-1] < upto:
                if (message := await hearing.get_message(timeout=1)) is not None:
                    found.append(int(message["data"]))
        return found

    for number in range(3 * UNHEARD):
        desk.publisher.ring("bell", b"%d" % number)
        await asyncio.sleep(0)
    assert await heard(3 * UNHEARD - 1) == list(range(3 * UNHEARD))

    await desk.redis.client_kill_filter(_type="normal", skipme=True)
    number = 3 * UNHEARD
    again = asyncio.create_task(heard(number))
    async with asyncio.timeout(10):
        while not again.done():
            desk.publisher.ring("bell", b"%d" % number)
            await asyncio.sleep(0.05)
    await hearing.aclose()  # type: ignore[no-untyped-call]


async def test_a_job_that_nobody_streams_and_soon_ends_has_no_log(desk: Desk) -> None:
    """Whoever follows it is told of the end at once, and reads the archive."""
    opened = desk.publisher.begin(desk.claim.job.id, every=60.0)

    async def read_patiently() -> list[bytes]:
        parts = [part async for part in desk.follower().entries(quiet=3600)]
        return [entry.kind for part in parts for entry in part]

    reading = asyncio.create_task(read_patiently())
    await desk.listened_to()
    await say(opened, 3)
    await desk.finish(opened)

    async with asyncio.timeout(10):
        assert await reading == [STARTED, DELTAS, END]
    assert await streams.read(desk.redis, desk.claim.job.id) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_an_end_is_read_once_the_database_is_back(desk: Desk, database_url: str) -> None:
    """The answer has begun: it is too late for a refusal, and an error would look like the end."""
    job_log = await desk.log()
    await say(job_log, 3)
    job = await desk.finish(job_log)
    with Link.to(database_url) as link:
        tx = db.Transactions(db.connect(through(database_url, link)), within=2.0)
        link.cut()
        entries = Follower(tx, desk.hub, job).entries(quiet=0.2)
        found = [await anext(entries)]
        link.mend()
        async with asyncio.timeout(30):
            found += [each async for each in entries]
        await asyncio.to_thread(tx.close)

    assert found[0] == []
    assert [entry.kind for entry in found[-1]] == [STARTED, DELTAS, END]
