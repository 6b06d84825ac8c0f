"""One try at a job, from claim to settled row, against a scripted upstream and real stores."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
from pydantic import SecretStr

from shared import jobs, keys, leases, streams
from shared.jobs import Submission
from shared.tables import Attempt, Job
from tests.fakes.upstream import (
    End,
    Finish,
    Reasoning,
    Reset,
    Say,
    ScriptedUpstream,
    Stall,
    Status,
    Step,
    Tool,
)
from tests.stack import CATALOG, MODEL
from tests.valkey import Valkey
from workers import attempts, bench
from workers.bench import Bench
from workers.settings import WorkerSettings

T = TypeVar("T")


@dataclass
class Shop:
    """A worker's bench, and jobs to put on it."""

    bench: Bench
    upstream: ScriptedUpstream
    account_id: str

    async def submit(self, *steps: Step, **fields: Any) -> Job:
        """A job whose upstream does this on every call."""
        if steps:
            self.upstream.script("test", *steps)
        body = {"messages": [{"role": "user", "content": "Hi"}], **fields.pop("body", {})}
        new = Submission(
            account_id=self.account_id,
            request_id="req",
            model="test",
            body=orjson.dumps(body),
            hinted=False,
            **fields,
        )
        return await self.bench.tx(jobs.submit, new)

    async def row(self, job: Job) -> Job:
        """The job, now."""
        return await self.bench.tx.read(jobs.find, self.account_id, job.id)

    async def response(self, job: Job) -> Any:
        """The stored completion."""
        kept = await self.bench.tx.read(jobs.content, job.id)
        return orjson.loads(kept.response or b"null")

    async def tries(self, job: Job) -> list[Attempt]:
        """Its attempts."""
        return await self.bench.tx.read(jobs.attempts, job.id)

    async def until(self, look: Callable[[], Awaitable[T | None]], within: float = 15.0) -> T:
        """What `look` finds."""
        async with asyncio.timeout(within):
            while not (found := await look()):
                await asyncio.sleep(0.02)
            return found

    async def run_to_the_end(self, job: Job) -> Job:
        """Try the job whenever it is due, as hints would have it, until it has ended."""

        async def ended() -> Job | None:
            await attempts.run(self.bench, job.id)
            row = await self.row(job)
            return row if row.completed_at else None

        return await self.until(ended)


@pytest.fixture
async def shop(
    tmp_path: Path, database_url: str, redis_server: Valkey, upstream: ScriptedUpstream
) -> AsyncIterator[Shop]:
    """Short leases and time limits."""
    catalogue = tmp_path / "models.toml"
    text = CATALOG.format(base_url=upstream.base_url) + MODEL.format(name="test")
    catalogue.write_text(text)
    settings = WorkerSettings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_server.url),
        catalog=catalogue,
        lease_ttl=timedelta(seconds=20),
        lease_beat=timedelta(seconds=0.2),
        lease_margin=timedelta(seconds=1),
        drain=timedelta(seconds=0.3),
        silence_timeout=timedelta(seconds=5),
        attempt_timeout=timedelta(seconds=2),
    )
    async with bench.lifespan(settings) as opened:
        key, _ = await opened.tx(keys.create, account="a")
        yield Shop(opened, upstream, key.account_id)


async def test_everything_the_model_says_is_kept(shop: Shop) -> None:
    """Text, thoughts, tool calls, finish reason and usage are in the stored completion."""
    job = await shop.submit(
        Reasoning("Let me see."), Say("It is sunny."), Tool("look", '{"at": "sky"}'),
        Finish("tool_calls"),
    )  # fmt: skip
    row = await shop.run_to_the_end(job)

    [choice] = (await shop.response(job))["choices"]
    assert row.status == "completed"
    assert choice["message"]["content"] == "It is sunny."
    assert choice["message"]["reasoning_content"] == "Let me see."
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "look",
        "arguments": '{"at": "sky"}',
    }
    assert choice["finish_reason"] == "tool_calls"
    assert row.usage is not None
    assert (row.provider, row.served_model) == ("fake", "test")
    assert row.first_delta_at is not None


async def test_a_failure_before_the_first_word_is_tried_again(shop: Shop) -> None:
    """The reader of a stream has seen nothing yet, so another attempt is no harm."""
    shop.upstream.script_calls("test", [Status(503)], [Say("There.")])
    job = await shop.submit(stream=True)
    row = await shop.run_to_the_end(job)

    assert (row.status, row.attempt) == ("completed", 2)
    assert [each.outcome for each in await shop.tries(job)] == ["retry", "completed"]
    assert len(shop.upstream.calls_of("test")) == 2


async def test_a_broken_stream_that_is_read_live_fails(shop: Shop) -> None:
    """Its reader has seen text; what it said until then is kept."""
    job = await shop.submit(Say("One two"), Reset(), stream=True)
    row = await shop.run_to_the_end(job)

    assert row.error is not None
    assert (row.status, row.attempt, row.error["code"]) == ("failed", 1, "upstream_disconnected")
    assert (await shop.response(job))["choices"][0]["message"]["content"] == "One two"


async def test_a_broken_stream_that_nobody_reads_starts_over(shop: Shop) -> None:
    """The partial text of the first attempt is discarded, in the log as well."""
    shop.upstream.script_calls("test", [Say("One two"), Reset()], [Say("Three four")])
    job = await shop.submit(background=True)
    row = await shop.run_to_the_end(job)

    assert (row.status, row.attempt) == ("completed", 2)
    assert (await shop.response(job))["choices"][0]["message"]["content"] == "Three four"
    entries = await streams.read(shop.bench.redis, job.id)
    kinds = b"".join(entry.kind for entry in entries)
    assert kinds.startswith(b"s")
    assert b"rd" in kinds
    assert kinds.endswith(b"e")


@pytest.mark.parametrize(
    "step, code",
    [(Status(400), "upstream_rejected"), (Status(401), "upstream_credentials")],
)
async def test_what_cannot_get_better_is_not_tried_again(shop: Shop, step: Step, code: str) -> None:
    """The upstream finds the request at fault, or our key."""
    job = await shop.submit(step)
    row = await shop.run_to_the_end(job)

    assert row.error is not None
    assert (row.status, row.attempt, row.error["code"]) == ("failed", 1, code)


async def test_tries_are_used_up(shop: Shop) -> None:
    """After `max_attempts` the last failure stands."""
    job = await shop.submit(Say("Half"), End(), background=True, max_attempts=2)
    row = await shop.run_to_the_end(job)

    assert (row.status, row.attempt) == ("failed", 2)
    assert len(shop.upstream.calls_of("test")) == 2


async def test_an_attempt_has_a_time_limit(shop: Shop) -> None:
    """However busily the upstream talks."""
    words = [f" {number}" for number in range(1000)]
    job = await shop.submit(Say(pieces=words, every=0.01), stream=True)
    row = await shop.run_to_the_end(job)

    assert row.error is not None
    assert (row.status, row.error["code"]) == ("failed", "upstream_timeout")
    assert row.deltas > 10


async def running(shop: Shop, job: Job) -> "asyncio.Task[None]":
    """Begin an attempt, and wait until the model has said something."""
    task = asyncio.create_task(attempts.run(shop.bench, job.id))

    async def spoken() -> bool:
        at_work = shop.bench.running.get(job.id)
        return at_work is not None and at_work.transcript.spoke

    await shop.until(spoken)
    return task


async def test_a_cancel_closes_the_upstream_at_once(shop: Shop) -> None:
    """By the control channel; the partial text stays."""
    job = await shop.submit(Say("One two"), Stall(), stream=True)
    task = await running(shop, job)
    asked = await shop.bench.tx(jobs.cancel, shop.account_id, job.id)
    assert asked.worker_id is not None
    began = asyncio.get_running_loop().time()
    await shop.bench.redis.publish(streams.control_channel(asked.worker_id), job.id)
    await task

    [call] = shop.upstream.calls_of("test")
    await shop.until(lambda: _closed(call))
    assert asyncio.get_running_loop().time() - began < 1.0
    assert (await shop.row(job)).status == "cancelled"
    assert (await shop.response(job))["choices"][0]["message"]["content"] == "One two"


async def _closed(call: Any) -> bool:
    return bool(call.finished == "closed_by_client")


async def test_a_cancel_that_went_unheard_comes_with_the_heartbeat(shop: Shop) -> None:
    """The row is the truth; the channel only makes it quick."""
    job = await shop.submit(Say("One two"), Stall(), stream=True)
    task = await running(shop, job)
    await shop.bench.tx(jobs.cancel, shop.account_id, job.id)
    await asyncio.wait_for(task, 10)

    assert (await shop.row(job)).status == "cancelled"


async def test_a_worker_presumed_dead_stops_and_says_no_more(shop: Shop) -> None:
    """Its lease was given away: it closes its calls, settles nothing and registers anew."""
    job = await shop.submit(Say("One two"), Stall(), background=True)
    task = await running(shop, job)
    before = shop.bench.heartbeat.worker_id
    assert before is not None
    await shop.bench.tx(leases.retire, before)
    await asyncio.wait_for(task, 10)

    async def new_lease() -> str | None:
        return shop.bench.heartbeat.worker_id

    assert await shop.until(new_lease) != before
    shop.upstream.script("test", Say("Three four"))
    row = await shop.run_to_the_end(job)
    assert (row.status, row.attempt) == ("completed", 2)
    assert (await shop.response(job))["choices"][0]["message"]["content"] == "Three four"


async def test_a_drain_hands_back_what_does_not_end_in_time(shop: Shop) -> None:
    """The attempt does not count, and another worker may begin at once."""
    job = await shop.submit(Say("One two"), Stall(), background=True)
    task = await running(shop, job)
    await shop.bench.drain()
    await task

    row = await shop.row(job)
    assert (row.status, row.attempt, row.forgiven) == ("queued", 1, 1)
    assert [each.outcome for each in await shop.tries(job)] == ["handed_back"]


async def test_a_second_hint_changes_nothing(shop: Shop) -> None:
    """Hints may come twice, late, or for jobs that are over."""
    job = await shop.submit(Say("One two", every=0.05))
    await asyncio.gather(*(attempts.run(shop.bench, job.id) for _ in range(10)))
    await attempts.run(shop.bench, job.id)
    await attempts.run(shop.bench, "0" * 26)

    assert (await shop.row(job)).attempt == 1
    assert len(shop.upstream.calls_of("test")) == 1
