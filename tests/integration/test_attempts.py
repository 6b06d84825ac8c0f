"""One try at a job, from claim to settled row, against a scripted upstream and real stores."""

import asyncio
import gc
import threading
import weakref
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from shared import hints, jobs, leases, queue, streams
from shared.lifecycle import Lane
from tests.fakes.upstream import (
    Chunk,
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
    WaitFor,
)
from tests.shop import Shop, open_shop
from tests.valkey import Valkey
from workers import attempts


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


async def test_a_role_is_no_word(shop: Shop) -> None:
    """Nothing was said yet, so the next attempt may say it."""
    role = Chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    shop.upstream.script_calls("test", [role, Reset()], [Say("There.")])
    job = await shop.submit(stream=True)
    row = await shop.run_to_the_end(job)

    assert (row.status, row.error) == ("completed", None)
    assert [each.outcome for each in await shop.tries(job)] == ["retry", "completed"]


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
    assert kinds.endswith(b"rde")


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


async def test_an_attempt_has_a_time_limit(
    tmp_path: Path, database_url: str, redis_server: Valkey, upstream: ScriptedUpstream
) -> None:
    """However busily the upstream talks."""
    words = [f" {number}" for number in range(1000)]
    limit = timedelta(seconds=2)
    async with open_shop(
        tmp_path, database_url, redis_server.url, upstream, attempt_timeout=limit
    ) as shop:
        job = await shop.submit(Say(pieces=words, every=0.01), stream=True)
        row = await shop.run_to_the_end(job)

    assert row.error is not None
    assert (row.status, row.error["code"]) == ("failed", "upstream_timeout")
    assert row.deltas > 10


async def test_an_attempt_that_has_ended_leaves_nothing_behind(shop: Shop) -> None:
    """Nothing that only the collector would find, who would be busy with it all the time."""
    job = await shop.submit(Say(pieces=["One"] * 20, every=0.01), stream=True)
    gc.disable()
    try:
        task = await shop.begin(job)
        said = weakref.finalize(shop.bench.hands.running[job.id].log, lambda: None)
        await asyncio.wait_for(task, 10)
        assert not said.alive
    finally:
        gc.enable()


async def test_a_cancel_closes_the_upstream_at_once(shop: Shop) -> None:
    """By the control channel; the partial text stays."""
    job = await shop.submit(Say("One two"), Stall(), stream=True)
    task = await shop.begin(job)
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
    task = await shop.begin(job)
    await shop.bench.tx(jobs.cancel, shop.account_id, job.id)
    await asyncio.wait_for(task, 10)

    assert (await shop.row(job)).status == "cancelled"


async def test_a_worker_presumed_dead_stops_and_says_no_more(shop: Shop) -> None:
    """Its lease was given away: it closes its calls, settles nothing and registers anew."""
    job = await shop.submit(Say("One two"), Stall(), background=True)
    task = await shop.begin(job)
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


@pytest.mark.parametrize("lost, kept", [(False, "One two three"), (True, "")])
async def test_of_a_lost_worker_is_kept_what_was_said_from_the_beginning(
    shop: Shop, lost: bool, kept: str
) -> None:
    """Redis may have lost the first entries of its log: the rest alone would be a wrong answer."""
    go_on = threading.Event()
    words = (Say("One two"), WaitFor(go_on), Say(" three"))
    job = await shop.submit(*words, Stall(), stream=True)
    task = await shop.begin(job)
    name = streams.log_name(job.id)

    async def said(text: str) -> list[streams.Entry] | None:
        entries = await streams.read(shop.bench.redis, job.id)
        return entries if entries and entries[-1].progress[1] == len(text) else None

    beginning = await shop.until(partial(said, "One two"))
    go_on.set()
    await shop.until(partial(said, "One two three"))
    for entry in beginning if lost else ():
        await shop.bench.redis.xdel(name, f"{entry.attempt}-{entry.seq}")
    worker = shop.bench.heartbeat.worker_id
    assert worker is not None
    await shop.bench.tx(leases.retire, worker)
    await asyncio.wait_for(task, 10)

    async def new_lease() -> bool:
        return shop.bench.heartbeat.worker_id not in (None, worker)

    await shop.until(new_lease)
    row = await shop.run_to_the_end(job)
    assert row.error is not None
    assert (row.status, row.attempt, row.error["code"]) == ("failed", 2, "worker_lost")
    stored = await shop.bench.tx.read(jobs.content, job.id)
    assert kept in (stored.response or b"").decode()
    assert stored.log is not None
    assert bool(streams.unpack(stored.log)) == bool(kept)


async def test_a_drain_hands_back_what_does_not_end_in_time(shop: Shop) -> None:
    """The attempt does not count, and another worker may begin at once."""
    job = await shop.submit(Say("One two"), Stall(), background=True)
    task = await shop.begin(job)
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


async def test_a_reader_is_told_at_once_that_its_worker_had_to_stop(shop: Shop) -> None:
    """What it has seen cannot be unsaid, so there is no use in waiting for another worker."""
    job = await shop.submit(Say("One two"), Stall(), stream=True)
    task = await shop.begin(job)
    await shop.bench.drain()
    await task

    row = await shop.row(job)
    assert row.error is not None
    assert (row.status, row.error["code"]) == ("failed", "worker_lost")
    assert row.error["message"] == "The worker had to stop in mid-answer."
    end = await streams.last(shop.bench.redis, job.id)
    assert end is not None
    assert end.kind == streams.END


async def test_a_hint_that_comes_during_a_drain_is_not_lost(shop: Shop) -> None:
    """The job asks for another at once, instead of when this one would be too old."""
    job = await shop.submit(Say("Hi"))
    await shop.bench.tx(hints.mark, [job.id], after_ms=0)
    await shop.bench.drain()
    await attempts.run(shop.bench, job.id)

    row = await shop.row(job)
    assert (row.status, row.attempt, row.hinted_at) == ("queued", 0, None)


async def test_what_a_claim_brings_during_a_drain_is_handed_back_unseen(shop: Shop) -> None:
    """The drain waits for claims as well, and no upstream hears of the job."""
    job = await shop.submit(Say("Hi"))
    task = asyncio.create_task(attempts.run(shop.bench, job.id))
    await asyncio.sleep(0)  # its claim is on its way
    await shop.bench.drain()

    row = await shop.row(job)
    assert (row.status, row.attempt, row.forgiven) == ("queued", 1, 1)
    assert shop.upstream.calls == []
    await task


async def test_a_request_that_cannot_be_read_fails(shop: Shop) -> None:
    """Ours or not, it would not get better: nothing hangs, nothing is tried again."""
    job = await shop.submit(Say("Hi"))
    await shop.bench.tx(_spoil, job.id)
    row = await shop.run_to_the_end(job)

    assert row.error is not None
    assert (row.status, row.attempt, row.error["code"]) == ("failed", 1, "internal_error")


def _spoil(session: Session, job_id: str) -> None:
    jobs.content(session, job_id).request = b"{"


async def test_what_the_database_cannot_keep_fails(shop: Shop) -> None:
    """An end that breaks the settle is replaced by one that does not."""
    go = threading.Event()
    job = await shop.submit(Say("One two"), WaitFor(go))
    task = await shop.begin(job)
    shop.bench.hands.running[job.id].first_delta_at = 2**70  # no column takes that
    go.set()
    await task

    row = await shop.row(job)
    assert row.error is not None
    assert (row.status, row.error["code"]) == ("failed", "internal_error")


async def test_a_task_that_is_cancelled_hands_its_job_back(shop: Shop) -> None:
    """Celery's hard limit, and its revoke."""
    job = await shop.submit(Say("One two"), Stall(), background=True)
    task = await shop.begin(job)
    task.cancel()
    await task

    assert [each.outcome for each in await shop.tries(job)] == ["handed_back"]


async def test_a_job_whose_claim_nobody_waits_for_is_handed_back(shop: Shop) -> None:
    """The task was cancelled while the claim was on its way; two beats see it."""
    job = await shop.submit(Say("Hi"))
    task = asyncio.create_task(attempts.run(shop.bench, job.id))
    await asyncio.sleep(0)
    task.cancel()

    async def back() -> bool:
        return (await shop.row(job)).forgiven == 1

    await shop.until(back)
    row = await shop.row(job)
    assert (row.status, row.attempt) == ("queued", 1)
    assert shop.upstream.calls == []


async def test_a_busy_worker_is_never_taken_for_one_that_forgot(shop: Shop) -> None:
    """Jobs come and go between the beats, and none is handed back."""
    shop.upstream.script("test", Say("One two three", every=0.01))
    many = [await shop.submit() for _ in range(100)]
    await asyncio.gather(*(attempts.run(shop.bench, job.id) for job in many))

    for job in many:
        assert [each.outcome for each in await shop.tries(job)] == ["completed"]


async def test_an_attempt_that_redis_refuses_stops(shop: Shop) -> None:
    """A later one has written to the log: this one closes its call, and its job is let go."""
    go = threading.Event()
    steps = Say("One two"), WaitFor(go), Say(" three"), Stall()
    job = await shop.submit(*steps, stream=True, background=True)
    task = await shop.begin(job)
    marker = streams.marker_payload(streams.RETRYING, {"attempt": 2})
    await streams.mark(shop.bench.redis, job.id, 2, marker, otherwise=1, ttl_ms=60_000)
    go.set()
    shop.upstream.script("test", Say("Four"))
    await asyncio.wait_for(task, 10)

    await shop.until(lambda: _closed(shop.upstream.calls[0]))

    async def let_go() -> bool:
        return (await shop.row(job)).status == "queued"

    await shop.until(let_go)  # by a beat
    row = await shop.run_to_the_end(job)
    assert (await shop.response(job))["choices"][0]["message"]["content"] == "Four"
    assert (await shop.tries(job))[0].outcome == "handed_back"
    assert row.losses == 0


async def test_a_first_attempt_needs_no_redis(shop: Shop, redis_server: Valkey) -> None:
    """Its log waits until Redis is back, or is told by the row."""
    job = await shop.submit(Say("Hi"))
    redis_server.kill()

    assert (await shop.run_to_the_end(job)).status == "completed"


async def test_a_later_attempt_without_a_log_waits_for_redis(
    shop: Shop, redis_server: Valkey
) -> None:
    """It is handed back with a pause: a worker cut off from Redis does not wear it out."""
    shop.upstream.script_calls("test", [Reset()], [Say("Hi")])
    job = await shop.submit(background=True)
    await attempts.run(shop.bench, job.id)

    async def hinted_again() -> bool:
        return job.id in await queue.waiting(shop.bench.redis, Lane.INTERACTIVE)

    await shop.until(hinted_again)
    redis_server.kill()
    await attempts.run(shop.bench, job.id)

    row = await shop.row(job)
    assert (row.status, row.attempt, row.forgiven) == ("queued", 2, 1)
    assert row.run_at is not None
    assert len(shop.upstream.calls) == 1
