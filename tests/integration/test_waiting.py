"""A held request and what it is told of the end: all of it at once, or where to look."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from pydantic import SecretStr

from api.exchange import LEFT
from api.front import Front
from api.middleware import Metrics
from api.settings import ApiSettings
from api.waiting import until_ended
from shared import accounts, answers, connections, db, jobs, ledger, statements, streams
from shared.answers import Seen
from shared.jobs import Submission
from shared.tables import Job
from tests import sqlite
from tests.batches import CATALOG
from tests.fakes.upstream import Finish, Say, Status
from tests.shop import Shop
from tests.valkey import Valkey
from workers import attempts

LONG = 20.0
PRICES = {"test": ["1000", "1000", "1000", "2000"]}


@dataclass
class Desk:
    """An api's front, and a job that somebody has just asked for."""

    front: Front
    job: Job

    async def held(self, *messages: bytes) -> Seen:
        """What the request is given that hears this."""
        with self.front.hub.listening(self.job.id) as bell:
            while not await streams.listened_to(self.front.redis, [self.job.id]):
                await asyncio.sleep(0.01)
            bell.early = False
            for each in messages:
                bell.ring(each)
            return await until_ended(self.front, self.job, LONG, nobody_leaves(), bell=bell)


def nobody_leaves() -> Request:
    """A request whose client waits for its answer."""
    return Request({"type": "http", "extensions": {LEFT: asyncio.Future()}})


@pytest.fixture
async def desk(tmp_path: Path, redis_server: Valkey) -> AsyncIterator[Desk]:
    """A front with its hub, and a job that waits."""
    settings = ApiSettings(home=tmp_path, database_url=SecretStr(sqlite.fresh(tmp_path)))
    tx, redis = (
        db.Transactions(db.connect(settings.database)),
        connections.open_redis(redis_server.url),
    )
    front = Front(settings, tx=tx, redis=redis, catalog=CATALOG, metrics=Metrics())
    front.hub.start()
    account = await tx(accounts.ensure, "ours")
    new = Submission(account_id=account.id, request_id="req", model="test", body=b"{}")
    yield Desk(front, await tx(jobs.submit, new))
    await front.hub.stop()
    await front.hints.close(timedelta())
    tx.close()
    await redis.aclose()


async def test_an_answer_that_comes_with_the_end_is_given_without_a_look(desk: Desk) -> None:
    """The row says that the job still waits; nobody asks it."""
    end = streams.answer_payload(b'{"a":1}', usage=None, cost=5, served_model="m", available=7)

    seen = await desk.held(streams.message(b"1-2", end))

    assert (seen.job.status, seen.job.cost, seen.job.served_model) == ("completed", 5, "m")
    assert seen.kept == answers.Kept(b'{"a":1}', 7)
    assert (
        await desk.front.tx.read(jobs.find, desk.job.account_id, desk.job.id)
    ).status == "queued"


async def test_an_end_without_an_answer_is_looked_up(desk: Desk) -> None:
    """Its message only says when."""
    await desk.front.tx(jobs.cancel, desk.job.account_id, desk.job.id)

    seen = await desk.held(streams.message(b"1-2", streams.end_payload("completed")))

    assert seen.job.status == "cancelled"


async def told(shop: Shop, job: Job) -> Mapping[str, Any]:
    """What those hear who wait for this job, when it ends."""
    listening = shop.bench.redis.pubsub()
    await listening.subscribe(streams.log_name(job.id))
    await shop.run_to_the_end(job)
    async for message in listening.listen():
        if message["type"] == "message":
            entry = streams.parse_message(message["data"])
            if entry.kind == streams.END:
                await listening.unsubscribe()
                return entry.fields
    raise AssertionError


async def test_a_short_job_brings_its_answer(shop: Shop) -> None:
    """All that the row says, and what the account has left."""
    await shop.bench.tx(ledger.grant, shop.account_id, 10**12, note="for tests")
    job = await shop.submit(Say("Hi"), Finish(), hold=10**9, prices=PRICES)

    end = await told(shop, job)

    row, response = await shop.row(job), await shop.response(job)
    left = await shop.bench.tx.read(statements.balance, shop.account_id)
    assert row.cost
    assert (end["status"], end["usage"]) == ("completed", row.usage)
    assert json.loads(end["answer"].pop("response")) == response
    assert end["answer"] == {
        "cost": row.cost,
        "served_model": row.served_model,
        "available": left.available,
    }


async def test_a_free_answer_says_nothing_of_credits(shop: Shop) -> None:
    """Nobody is told what is left of them."""
    end = await told(shop, await shop.submit(Say("Hi"), Finish()))

    assert (end["answer"]["cost"], end["answer"]["available"]) == (None, None)


@pytest.mark.parametrize("fields", [{"background": True}, {"stream": True}])
async def test_nobody_waits_for_the_whole_answer_of_other_jobs(
    shop: Shop, fields: dict[str, Any]
) -> None:
    """It would go through Redis for nothing."""
    end = await told(shop, await shop.submit(Say("Hi"), Finish(), **fields))

    assert "answer" not in end


async def test_a_long_answer_is_looked_up(shop: Shop) -> None:
    """Redis passes on words, not books."""
    end = await told(shop, await shop.submit(Say("x" * attempts.TOLD), Finish()))

    assert "answer" not in end


async def test_a_failure_is_told_as_everywhere(shop: Shop) -> None:
    """There is no answer."""
    end = await told(shop, await shop.submit(Status(400)))

    assert (end["status"], "answer" in end) == ("failed", False)
