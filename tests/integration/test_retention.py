"""Retention: what was kept long enough goes in small steps, completely, whatever comes between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis
from sqlalchemy import func, text
from sqlmodel import Session, select

from shared import (
    batch_results,
    batches,
    clock,
    connections,
    db,
    jobs,
    leases,
    queue,
    retention,
    streams,
)
from shared.audit import examine
from shared.db import Transactions
from shared.errors import ContentExpired, NotFound
from shared.lifecycle import JobStatus
from shared.rendering import rendered
from shared.tables import (
    Attempt,
    Batch,
    File,
    IdempotencyKey,
    Job,
    JobContent,
    JobMetadata,
    Worker,
)
from tests.batches import advance, begun, run
from tests.factories import (
    HOUR,
    Sessions,
    claimed,
    ended_at,
    job_in,
    submission,
    submitted,
    worker,
)
from tests.stack import Process, eventually
from tests.valkey import Valkey

OF_A_JOB = (Job, JobContent, JobMetadata, Attempt)


def count(session: Session, table: type) -> int:
    """Rows of a table."""
    return session.exec(select(func.count()).select_from(table)).one()


def test_old_jobs_are_pruned_in_batches(sessions: Sessions) -> None:
    """The oldest first, with all that belongs to them, and none that is younger or still runs."""
    with sessions() as session:
        long_ago = clock.now() - 2 * HOUR
        old = [ended_at(session, long_ago - number, metadata={"a": "1"}).id for number in range(5)]
        kept = {job_in(session, status).id for status in (JobStatus.COMPLETED, JobStatus.QUEUED)}

    pruned = []
    for _ in range(4):
        with sessions() as session:
            pruned.append(set(retention.prune(session, HOUR, 2)))
    with sessions() as session:
        assert pruned == [{old[4], old[3]}, {old[2], old[1]}, {old[0]}, set()]
        assert set(session.exec(select(Job.id))) == kept
        assert set(session.exec(select(JobContent.job_id))) == kept
        assert count(session, JobMetadata) == 0


def test_what_was_said_goes_before_the_job(sessions: Sessions) -> None:
    """Its row stays as it was, for the accounts; what was asked, said and labelled is gone."""
    with sessions() as session:
        old = job_in(session, JobStatus.COMPLETED, metadata={"a": "1"}, fingerprint=b"f")
        running = claimed(session, metadata={"a": "2"}).job
        session.refresh(old)
        before = old.model_dump()

    with sessions() as session:
        assert retention.anonymise(session, HOUR, 10) == []
        assert retention.anonymise(session, -HOUR, 10) == [old.id]
        assert retention.anonymise(session, -HOUR, 10) == []
    with sessions() as session:
        after = session.get_one(Job, old.id).model_dump()
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {"job_metadata", "fingerprint", "content_deleted_at"}
        assert (after["job_metadata"], after["fingerprint"]) == (None, None)
        assert list(session.exec(select(JobContent.job_id))) == [running.id]
        assert list(session.exec(select(JobMetadata.value))) == ["2"]


def test_a_job_without_content_says_so(sessions: Sessions) -> None:
    """It is not unknown, as a deleted one is; and it is not labelled anew."""
    with sessions() as session:
        job = job_in(session, JobStatus.COMPLETED)
        retention.anonymise(session, -HOUR, 10)

    with sessions() as session:
        assert jobs.find(session, job.account_id, job.id).id == job.id
        with pytest.raises(ContentExpired, match=job.id):
            jobs.content(session, job.id)
        with pytest.raises(ContentExpired):
            jobs.set_metadata(session, job.account_id, job.id, {"a": "1"})
        assert jobs.responses(session, [job.id]) == {}
        with pytest.raises(NotFound):
            jobs.content(session, "0" * 26)
        jobs.remove(session, job.account_id, job.id)
        with pytest.raises(NotFound):
            jobs.content(session, job.id)


def test_two_clean_ups_share_the_work(sessions: Sessions) -> None:
    """No job is counted twice, and neither waits for the other's rows."""
    with sessions() as session:
        made = {ended_at(session, number).id for number in range(10)}

    one, other = sessions.at_once(*[partial(retention.prune, older_than_ms=0, limit=5)] * 2)

    assert len(one) == len(other) == 5
    assert {*one, *other} == made


def test_keys_are_forgotten_by_their_age(sessions: Sessions) -> None:
    """In batches; a younger one still stands for its request."""
    with sessions() as session:
        account_id = submitted(session).account_id
        for number, age in enumerate((3, 2, 2, 0)):
            made = clock.now() - age * HOUR
            session.add(
                IdempotencyKey(
                    account_id=account_id,
                    scope="POST /v1/jobs",
                    key=str(number),
                    fingerprint=b"",
                    job_ids=[],
                    created_at=made,
                )
            )
        session.flush()

        gone = [len(retention.forget_keys(session, HOUR, 2)) for _ in range(3)]

        assert gone == [2, 1, 0]
        assert list(session.exec(select(IdempotencyKey.key))) == ["3"]


def test_workers_are_forgotten_once_they_hold_nothing(sessions: Sessions) -> None:
    """The living stay, and so does a dead one whose job was not taken back yet."""
    with sessions() as session:
        living, gone = worker(session), worker(session)
        holding = claimed(session).lease.worker_id
        for dead in (gone, holding):
            leases.retire(session, dead)
        assert retention.forget_workers(session, HOUR, 10) == []
        session.connection().execute(text(f"UPDATE workers SET ended_at = ended_at - {2 * HOUR}"))

        assert list(retention.forget_workers(session, HOUR, 10)) == [gone]
        assert set(session.exec(select(Worker.id))) == {living, holding}


@asynccontextmanager
async def stores(database_url: str, server: Valkey) -> AsyncIterator[tuple[Transactions, Redis]]:
    """What the clean-up works on."""
    tx, client = db.Transactions(db.connect(database_url)), connections.open_redis(server.url)
    try:
        yield tx, client
    finally:
        tx.close()
        await client.aclose()


def ended(sessions: Sessions, many: int) -> list[str]:
    """So many jobs that were cancelled long ago."""
    with sessions() as session:
        many_new = [submission(session, metadata={"a": "1"}) for _ in range(many)]
        made = [job.id for job in jobs.submit_all(session, many_new)]
        session.connection().execute(text("UPDATE jobs SET status = 'cancelled', completed_at = 1"))
    return made


async def test_everything_due_is_taken_away_with_its_logs(
    sessions: Sessions, redis_server: Valkey, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many there are; what stays keeps its log, and the log of the process tells."""
    old = ended(sessions, 450)
    with sessions() as session:
        young = job_in(session, JobStatus.COMPLETED).id
    async with stores(sessions.url, redis_server) as (tx, client):
        for job_id in (old[0], old[-1], young):
            await client.set(streams.log_name(job_id), b"")

        await retention.enforce(
            tx, client, jobs_for=timedelta(hours=1), contents_for=timedelta(hours=1)
        )

        assert await client.keys() == [streams.log_name(young).encode()]
    with sessions() as session:
        assert list(session.exec(select(Job.id))) == [young]
    assert "prune" in capsys.readouterr().out


async def test_only_what_was_said_is_taken_when_jobs_are_kept(
    sessions: Sessions, redis_server: Valkey
) -> None:
    """The content of all, the rows of none; without a span of its own it stays with the job."""
    old = ended(sessions, 250)
    async with stores(sessions.url, redis_server) as (tx, client):
        await client.set(streams.log_name(old[0]), b"")
        forever = timedelta(days=365 * 1000)

        await retention.enforce(tx, client, jobs_for=forever, contents_for=None)
        with sessions() as session:
            assert [count(session, table) for table in OF_A_JOB[:3]] == [250, 250, 250]
        await retention.enforce(tx, client, jobs_for=forever, contents_for=timedelta())

        assert await client.keys() == []
    with sessions() as session:
        assert [count(session, table) for table in OF_A_JOB[:3]] == [250, 0, 0]
    assert examine(sessions.engine).flaws == []


async def test_a_clean_up_may_be_ended_anywhere(sessions: Sessions, redis_server: Valkey) -> None:
    """What it left is whole, and the next one finishes the work; Redis need not be there."""
    ended(sessions, 450)
    redis_server.kill()
    async with stores(sessions.url, redis_server) as (tx, client):
        enforce = partial(retention.enforce, tx, client, jobs_for=timedelta(), contents_for=None)
        running = asyncio.create_task(enforce())
        async with asyncio.timeout(20):
            while await tx.read(count, Job) == 450:
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

        with sessions() as session:
            assert count(session, Job) in (50, 250)
        assert examine(sessions.engine).flaws == []
        await enforce()

    with sessions() as session:
        assert [count(session, table) for table in OF_A_JOB] == [0, 0, 0, 0]


def test_the_beat_asks_for_a_clean_up_as_soon_as_it_starts(
    tmp_path: Path, redis_server: Valkey
) -> None:
    """A machine that is never on for long is cleaned up as well."""
    settings = {"SLUICE_REDIS_URL": redis_server.url, "SLUICE_HOME": str(tmp_path)}
    beat = Process(["beat"], settings, tmp_path / "beat.log")
    try:
        with redis.Redis.from_url(redis_server.url) as client:
            asked = partial(client.llen, queue.queue_key(queue.MAINTENANCE))
            assert eventually(asked, 30) == 1
    finally:
        beat.stop()


async def test_a_batch_goes_as_a_whole(sessions: Sessions, redis_server: Valkey) -> None:
    """Its lines, those that were tried anew and its files: none before it has ended long enough."""
    with sessions() as session:
        kept, gone = begun(session, 1), begun(session, 2)
        run(session, kept, 1, JobStatus.COMPLETED)
        run(session, gone, 1, JobStatus.FAILED)
        run(session, gone, 2, JobStatus.COMPLETED)
        advance(session, gone)
        batches.retry(session, gone.account_id, gone.id)
        advance(session, gone)
        run(session, gone, 1, JobStatus.COMPLETED)
    async with stores(sessions.url, redis_server) as (tx, client):
        enforce = partial(retention.enforce, tx, client)
        for contents_for in (None, timedelta()):
            await enforce(jobs_for=timedelta(), contents_for=contents_for)
            with sessions() as session:
                assert [count(session, table) for table in (Job, JobContent)] == [4, 4]

        with sessions() as session:
            advance(session, session.get_one(Batch, gone.id))
            assert count(session, File) == 3
        await enforce(jobs_for=timedelta(days=1), contents_for=timedelta())
        with sessions() as session:
            batch = session.get_one(Batch, gone.id)
            [line, *_] = batch_results.results(session, gone.id, after=0, limit=9)
            assert b"content_expired" in rendered(line)
            assert [count(session, table) for table in (Job, JobContent, File)] == [4, 1, 2]
            assert (batch.status, batch.results) == ("completed", 3)
        assert examine(sessions.engine).flaws == []

        await enforce(jobs_for=timedelta(), contents_for=None)
    with sessions() as session:
        assert list(session.exec(select(Batch.id))) == [kept.id]
        assert list(session.exec(select(Job.batch_id))) == [kept.id]
    assert examine(sessions.engine).flaws == []
