"""When a model fails its fallbacks answer: the same worker goes on, in whatever dialect."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from shared import audit, breakers, db, hints, jobs, leases, losses, streams
from shared.errors import Fault, UpstreamOverloaded
from shared.outcomes import Retry
from shared.tables import Job
from tests import sqlite
from tests.factories import waiting
from tests.fakes.anthropic import ScriptedAnthropic
from tests.fakes.upstream import (
    Chunk,
    End,
    ErrorInBand,
    Headers,
    Reset,
    Say,
    ScriptedUpstream,
    Stall,
    Status,
    Step,
)
from tests.shop import Shop, open_shop
from tests.valkey import Valkey
from workers import attempts
from workers.targets import Breakers

OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}
MODELS = """
[upstreams.claude]
dialect = "anthropic"
base_url = "{claude}"

[upstreams.gone]
dialect = "openai"
base_url = "http://127.0.0.1:{closed}/v1"

[upstreams.keyless]
dialect = "openai"
base_url = "http://127.0.0.1:{closed}/v1"
api_key_env = "A_KEY_THAT_IS_NOT_SET"

[models.test]
upstream = "{first}"
upstream_model = "first"
context_window = 8192
max_output_tokens = 4096
free = true
fallbacks = ["small", "large"]

[models.small]
upstream = "{second}"
context_window = 8000
max_output_tokens = 4096
free = true
lacks = ["seed", "logprobs"]

[models.large]
upstream = "fake"
context_window = 100000
max_output_tokens = 4096
free = true
"""
Dialects = tuple[str, str]
"""The upstreams of the first two models."""


@dataclass
class Chain:
    """A shop whose model has two others to fall back to."""

    shop: Shop
    servers: dict[str, ScriptedUpstream]
    first: str
    second: str

    def script(self, model: str, *calls: Sequence[Step]) -> None:
        """What `first`, `small` or `large` does, call by call."""
        for server in self.servers.values():
            server.script_calls(model, *calls)

    def calls(self, model: str) -> int:
        """How often it was called."""
        return sum(len(server.calls_of(model)) for server in self.servers.values())

    async def run(self, **fields: Any) -> Job:
        """A job at its end, of which no breaker knows anything yet."""
        await self.shop.bench.redis.flushall()
        self.shop.bench.breakers = Breakers(self.shop.bench.redis)
        return await self.go_on(**fields)

    async def go_on(self, **fields: Any) -> Job:
        """A job at its end; breakers are as the last one left them."""
        return await self.shop.run_to_the_end(await self.shop.submit(**fields))

    async def words(self, job: Job) -> list[tuple[str | None, int | None, str | None]]:
        """Model, status and outcome of each attempt."""
        tries = await self.shop.tries(job)
        return [(each.model, each.upstream_status, each.outcome) for each in tries]


@pytest.fixture
def claude() -> Iterator[ScriptedAnthropic]:
    """A server of the other dialect."""
    with ScriptedAnthropic() as server:
        yield server


@pytest.fixture
def dialects(request: pytest.FixtureRequest) -> Dialects:
    """Each dialect falls back to the other, unless the test says otherwise."""
    chosen: Dialects = getattr(request, "param", ("fake", "claude"))
    return chosen


@pytest.fixture
async def chain(
    tmp_path: Path,
    redis_server: Valkey,
    upstream: ScriptedUpstream,
    claude: ScriptedAnthropic,
    dialects: Dialects,
) -> AsyncIterator[Chain]:
    """The shop; in the end every promise of its database holds."""
    first, second = dialects
    url = sqlite.fresh(tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        models = MODELS.format(
            claude=claude.base_url, closed=unused.getsockname()[1], first=first, second=second
        )
        limits = {"silence_timeout": timedelta(seconds=1.5)}
        limits |= {"first_byte_timeout": timedelta(seconds=1.5)}
        async with open_shop(tmp_path, url, redis_server.url, upstream, models, **limits) as shop:
            yield Chain(shop, {"fake": upstream, "claude": claude}, first, second)
    engine = db.connect(url)
    assert not audit.examine(engine).broken
    engine.dispose()


BOTH = pytest.mark.parametrize("dialects", [("fake", "claude"), ("claude", "fake")], indirect=True)
WAIT = {"Retry-After": "30"}
ROLE = Chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
FAILURES: dict[str, tuple[list[Step], str]] = {
    "429": ([Status(429, headers=WAIT)], "upstream_rate_limited"),
    "500": ([Status(500)], "upstream_error"),
    "529": ([Status(529)], "upstream_overloaded"),
    "reset": ([Headers(), Reset()], "upstream_disconnected"),
    "nothing": ([Headers(), End()], "upstream_disconnected"),
    "silent": ([Stall()], "upstream_timeout"),
    "error in 200": ([ErrorInBand(OVERLOADED)], "upstream_overloaded"),
    "401": ([Status(401)], "upstream_credentials"),
}


@BOTH
async def test_what_fails_before_the_first_word_is_answered_by_the_next(chain: Chain) -> None:
    """In a stream that is read live as well: its reader sees one answer, and no seam."""
    chain.script("small", [Say("Here I am")])
    for kind, (steps, code) in FAILURES.items():
        chain.script("first", steps)
        job = await chain.run(stream=True, max_attempts=1)

        answered = (job.status, job.served_model, job.provider, job.attempt, job.target)
        assert answered == ("completed", "small", chain.second, 2, 1), kind
        first, second = await chain.shop.tries(job)
        assert first.error is not None
        assert (first.model, first.outcome, first.error["code"]) == ("test", "fell_back", code)
        assert (second.model, second.outcome, second.upstream_status) == (
            "small",
            "completed",
            200,
        )
        assert (await chain.shop.response(job))["model"] == "test"


@pytest.mark.parametrize("dialects", [("gone", "claude"), ("keyless", "claude")], indirect=True)
async def test_a_model_that_cannot_be_called_is_passed_over(chain: Chain) -> None:
    """Nobody listens there, or this worker has no key for it."""
    chain.script("small", [Say("Here I am")])
    job = await chain.run(max_attempts=1)

    assert (job.status, job.served_model) == ("completed", "small")
    reached = [("small", 200, "completed")]
    assert await chain.words(job) in (reached, [("test", None, "fell_back"), *reached])


@BOTH
async def test_the_same_model_is_tried_first(chain: Chain) -> None:
    """As often as the job may be; then its fallback as often again."""
    chain.script("first", [Status(503)])
    chain.script("small", [Status(503)], [Say("Here I am")])
    job = await chain.run(max_attempts=2)

    assert await chain.words(job) == [
        ("test", 503, "retry"),
        ("test", 503, "fell_back"),
        ("small", 503, "retry"),
        ("small", 200, "completed"),
    ]


@BOTH
async def test_an_answer_that_broke_off_is_given_by_the_next_if_nobody_read_it(
    chain: Chain,
) -> None:
    """The half that was said is discarded, in the log too."""
    chain.script("small", [Say("Here I am")])
    for end in (Reset(), End(), ErrorInBand(OVERLOADED), Stall()):
        chain.script("first", [Say("Half a"), end])
        job = await chain.run(max_attempts=1, background=True)

        assert (job.status, job.served_model) == ("completed", "small"), end
        [choice] = (await chain.shop.response(job))["choices"]
        assert choice["message"]["content"] == "Here I am"
        kinds = b"".join(e.kind for e in await streams.read(chain.shop.bench.redis, job.id))
        assert (kinds.count(b"r"), kinds[-1:]) == (1, b"e")


@BOTH
async def test_an_answer_that_broke_off_under_its_readers_eyes_fails(chain: Chain) -> None:
    """What was read cannot be unsaid; no other model is called."""
    chain.script("first", [Say("Half a"), Reset()])
    job = await chain.run(stream=True)

    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "upstream_disconnected")
    assert chain.calls("small") == 0


async def test_a_reader_is_not_shown_what_has_no_word_in_it(chain: Chain) -> None:
    """A role alone commits to nothing: another attempt begins as if it had not been said."""
    chain.script("first", [ROLE, Reset()], [ROLE, Stall()], [Say("There.")])
    job = await chain.run(stream=True)

    assert (job.status, job.attempt, job.target) == ("completed", 3, 0)
    entries = await streams.read(chain.shop.bench.redis, job.id)
    assert [entry.attempt for entry in entries if entry.kind == streams.DELTAS] == [3] * (
        len(entries) - 4
    )

    for model in ("first", "small", "large"):
        chain.script(model, [ROLE, Reset()])
    job = await chain.run(stream=True, max_attempts=1)

    assert (job.status, job.attempt, job.deltas) == ("failed", 3, 0)
    assert (await chain.shop.response(job))["choices"] == []


@BOTH
async def test_a_wrong_request_is_nobodys_to_repair(chain: Chain) -> None:
    """The model that was asked for refuses it: no other is called."""
    for status in (400, 413, 422):
        chain.script("first", [Status(status)])
        job = await chain.run()

        assert job.status == "failed"
        assert await chain.words(job) == [("test", status, "failed")]


@BOTH
async def test_a_fallback_that_cannot_do_what_is_asked_is_passed_over(chain: Chain) -> None:
    """It says nothing about the request, which was made for another model."""
    chain.script("first", [Status(503)])
    chain.script("small", [Status(400)])
    chain.script("large", [Say("Here I am")])
    job = await chain.run(max_attempts=1)

    assert (job.status, job.served_model) == ("completed", "large")


@BOTH
async def test_when_all_have_failed_each_failure_is_told(chain: Chain) -> None:
    """The first model's counts, when the last ones only could not do what was asked."""
    chain.script("first", [Status(503)])
    chain.script("small", [Status(500)])
    chain.script("large", [Status(422)])
    job = await chain.run(max_attempts=1)

    assert job.error is not None
    assert (job.error["status"], job.error["code"]) == (503, "upstream_overloaded")
    assert job.error["details"]["attempts"] == [
        {"model": "test", "status": 503, "code": "upstream_overloaded"},
        {"model": "small", "status": 500, "code": "upstream_error"},
        {"model": "large", "status": 422, "code": "upstream_rejected"},
    ]
    assert (job.attempt, job.forgiven) == (3, 2)


@BOTH
async def test_a_prompt_that_is_too_long_goes_to_a_larger_window(chain: Chain) -> None:
    """And to none that is as small."""
    too_long = {"type": "invalid_request_error", "message": "prompt is too long: 9000 > 8192"}
    chain.script("first", [Status(400, {"error": too_long})])
    chain.script("large", [Say("Here I am")])
    job = await chain.run()

    assert (job.status, job.served_model, chain.calls("small")) == ("completed", "large", 0)


async def test_each_model_is_asked_for_no_more_than_its_window_has_room_for(chain: Chain) -> None:
    """Of 8,192 tokens and of 8,000 a prompt takes at least 6,000: the rest is for the answer."""
    chain.script("first", [Status(503)])
    chain.script("small", [Say("Here I am")])
    prompt = [{"role": "user", "content": "A story. " * 5_334}]
    await chain.run(body={"messages": prompt, "max_tokens": 4_000}, max_attempts=1)

    [[first], [small]] = [
        [call.body["max_tokens"] for call in chain.servers[name].calls_of(model)]
        for name, model in ((chain.first, "first"), (chain.second, "small"))
    ]
    assert (first, small) == (2_192, 2_000)


async def test_what_may_be_dropped_is_dropped_for_the_model_that_lacks_it(chain: Chain) -> None:
    """The first gets all of it, the next what it takes; the answer says what it did not take."""
    chain.script("first", [Status(503)])
    chain.script("small", [Say("Here I am")])
    steered = {"seed": 7, "logprobs": True, "temperature": 0.5}
    job = await chain.run(body={**steered, "drop_unsupported": True}, max_attempts=1)

    [first] = chain.servers[chain.first].calls_of("first")
    [small] = chain.servers[chain.second].calls_of("small")
    assert first.body.items() >= steered.items()
    assert small.body["temperature"] == 0.5
    assert not {"seed", "logprobs", "drop_unsupported"} & small.body.keys()
    assert "drop_unsupported" not in first.body
    warnings = (await chain.shop.response(job))["warnings"]
    assert job.warnings == warnings
    kept = await chain.shop.bench.tx.read(jobs.content, job.id)
    told = [orjson.loads(line).get("warnings") for line in streams.unpack(kept.log or b"")]
    assert told == [warnings] + [None] * (len(told) - 1)
    assert {(each["code"], each["param"]) for each in warnings} == {
        ("unsupported_parameter", "seed"),
        ("unsupported_parameter", "logprobs"),
    }


async def test_who_does_not_allow_it_gets_nothing_dropped(chain: Chain) -> None:
    """A model that lacks what was asked for is passed over."""
    chain.script("first", [Status(503)])
    chain.script("large", [Say("Here I am")])
    job = await chain.run(body={"seed": 7}, max_attempts=1)

    assert (job.served_model, chain.calls("small")) == ("large", 0)
    assert "warnings" not in await chain.shop.response(job)
    assert job.warnings is None


async def test_an_upstream_that_does_not_know_the_model_is_left(chain: Chain) -> None:
    """That is our catalogue's mistake, and not the caller's."""
    chain.script("first", [Status(404)])
    chain.script("small", [Say("Here I am")])

    assert (await chain.run()).served_model == "small"


async def test_a_short_pause_is_waited_for(chain: Chain) -> None:
    """The model that was asked for is worth a moment, in which its breaker is open."""
    chain.script("first", [Status(429, headers={"Retry-After": "1"})], [Say("There.")])
    job = await chain.run()

    assert await chain.words(job) == [("test", 429, "retry"), ("test", 200, "completed")]


async def test_an_open_breaker_is_not_called(chain: Chain) -> None:
    """Once the first model has failed often enough, the next answers at the first attempt."""
    chain.script("first", [Status(503)])
    chain.script("small", [Say("Here I am")])
    for _ in range(3):
        await chain.go_on(max_attempts=1)
    assert await breakers.states(chain.shop.bench.redis, ["test"]) == {"test": "open"}

    job = await chain.go_on(max_attempts=1)

    assert (await chain.words(job), job.target) == ([("small", 200, "completed")], 0)
    assert chain.calls("first") == 3


async def test_when_every_breaker_is_open_the_last_model_is_called(chain: Chain) -> None:
    """And its answer closes it."""
    for name in ("test", "small", "large"):
        await breakers.report(
            chain.shop.bench.redis, name, failed=True, pause=timedelta(seconds=60)
        )
    chain.script("large", [Say("Here I am")])
    job = await chain.go_on()

    assert job.served_model == "large"
    states = await breakers.states(chain.shop.bench.redis, ["test", "small", "large"])
    assert states == {"test": "open", "small": "open", "large": "closed"}


@pytest.mark.parametrize("dialects", [("keyless", "keyless")], indirect=True)
async def test_without_any_key_a_job_is_not_lost(chain: Chain) -> None:
    """The model that can be called is; what cannot be called is not tried."""
    chain.script("large", [Say("Here I am")])

    assert (await chain.run()).served_model == "large"


async def test_a_cancel_between_two_models_is_the_end(chain: Chain) -> None:
    """It was asked to stop while the first one failed: the next is not called."""
    chain.script("first", [Say("Half a"), Stall()])
    job = await chain.shop.submit(background=True, max_attempts=1)
    task = await chain.shop.begin(job)
    running = chain.shop.bench.hands.running[job.id]
    lease = running.claim.lease
    fault = Fault.of(UpstreamOverloaded("busy"))
    await chain.shop.bench.tx(_ask_to_stop, job.id)

    ended = await chain.shop.bench.tx(leases.settle, lease, Retry(fault, timedelta(), target=1))

    assert ended is not None
    assert ended.status == "cancelled"
    await asyncio.wait_for(task, 10)
    assert chain.calls("small") == 0


def _ask_to_stop(session: Any, job_id: str) -> None:
    session.get_one(Job, job_id).cancel_requested_at = 1


async def test_a_worker_that_dies_between_two_models_leaves_the_job_to_another(
    chain: Chain,
) -> None:
    """It was to go on by itself; a hint comes when it has not for a while."""
    job = await chain.shop.submit(max_attempts=1)
    tx, ours = chain.shop.bench.tx, chain.shop.bench.heartbeat.worker_id
    assert ours is not None
    claim = await tx(leases.claim, job.id, ours)
    assert claim is not None
    fault = Fault.of(UpstreamOverloaded("busy"))
    await tx(leases.settle, claim.lease, Retry(fault, timedelta(), target=1))
    lane = job.lane

    assert await tx.read(waiting, lane) == []
    assert await tx.read(hints.stale, lane, after_ms=-1_000, limit=10) == [job.id]
    chain.script("small", [Say("Here I am")])
    await attempts.run(chain.shop.bench, job.id)
    assert (await chain.shop.row(job)).served_model == "small"


async def test_a_worker_that_is_lost_at_a_fallback_leaves_it_to_another(chain: Chain) -> None:
    """Whose turn it is stays so; the loss counts as a try at that model."""
    job = await chain.shop.submit(max_attempts=2)
    tx, ours = chain.shop.bench.tx, chain.shop.bench.heartbeat.worker_id
    dead = await tx(leases.register, pid=1, slots=1, models=[])
    fault = Fault.of(UpstreamOverloaded("busy"))
    assert ours is not None
    claim = await tx(leases.claim, job.id, ours)
    assert claim is not None
    await tx(leases.settle, claim.lease, Retry(fault, timedelta(), target=1))
    await tx(leases.claim, job.id, dead)
    await tx(leases.retire, dead)

    [rescued] = await tx(losses.rescue, 10)

    assert (rescued.status, rescued.target, rescued.forgiven) == ("queued", 1, 1)
    chain.script("small", [Say("Here I am")])
    row = await chain.shop.run_to_the_end(job)
    assert (row.served_model, row.attempt) == ("small", 3)


async def test_a_worker_that_drains_leaves_the_next_model_to_another(chain: Chain) -> None:
    """It settles, claims nothing more, and has the sweep send a hint at once."""
    chain.script("first", [Stall()])
    job = await chain.shop.submit(max_attempts=1)
    task = asyncio.create_task(attempts.run(chain.shop.bench, job.id))
    await chain.shop.until(lambda: _called(chain))
    chain.shop.bench.draining = True
    await task

    row = await chain.shop.row(job)
    assert (row.status, row.target, row.attempt, row.hinted_at) == ("queued", 1, 1, None)
    chain.shop.bench.draining = False


@pytest.mark.parametrize(
    "over, status, called", [(0, "completed", 1), (1, "queued", 0)], ids=["short", "long"]
)
async def test_a_long_try_leaves_the_next_model_to_another_hint(
    chain: Chain, over: int, status: str, called: int
) -> None:
    """A task has time for one; the rest of the chain gets a task of its own."""
    chain.script("first", [Status(503)])
    chain.script("small", [Say("Here I am")])
    job = await chain.shop.submit(max_attempts=1)
    took = attempts.FALL_BACK_WITHIN + over
    await attempts.run(
        chain.shop.bench, job.id, clock=lambda: took if chain.calls("first") else 0.0
    )

    row = await chain.shop.row(job)
    assert (row.status, row.target, chain.calls("small")) == (status, 1, called)


async def _called(chain: Chain) -> bool:
    return chain.calls("first") > 0
