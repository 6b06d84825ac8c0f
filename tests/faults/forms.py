"""The forms in which callers use the service, and a seeded mixture of them."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import aiohttp

from shared import ids
from tests.faults.callers import (
    BATCHES,
    COMPLETIONS,
    JOBS,
    Asked,
    Caller,
    Record,
    Refused,
    body_for,
)
from tests.faults.machine import GRACE, MISBEHAVIOURS, PACES
from tests.faults.reading import said

WORDS = (5, 60)
"""Words that a model is to say, least and most."""
MISBEHAVING = 0.2
"""The part of the jobs whose upstream fails them at first."""
ARRAY = (3, 12)
LONG_WORDS = round(GRACE * 2.5 / 0.04)
"""So many that the job would outlast its readers' grace."""

Form = Callable[[Caller], Awaitable[None]]


async def held(caller: Caller) -> None:
    """A plain request, held until the answer is there."""
    record = caller.record
    status, _, body = await caller.post(COMPLETIONS, body_for(record))
    if status == 200:
        record.answers[record.job_ids[0]] = ("completed", said(body))
    else:
        record.told.append(body["error"]["code"])


async def held_for_an_sdk(caller: Caller) -> None:
    """The same without a key, from an SDK, which says when it sends a request again by itself."""
    caller.record.keyless = True
    await held(caller)


async def streamed(caller: Caller) -> None:
    """A plain stream, read to its end."""
    await caller.stream(COMPLETIONS, body=body_for(caller.record, stream=True))


async def streamed_with_breaks(caller: Caller) -> None:
    """A stream whose reader leaves twice, and comes back at the other api."""
    body = body_for(caller.record, stream=True, stream_options={"include_usage": True})
    for _ in range(2):
        leave_after = len(caller.record.reading.pieces) + caller.chance.randint(1, 9)
        await caller.stream(COMPLETIONS, body=body, leave_after=leave_after)
        if caller.record.reading.ended is not None:
            return
        await caller.stay_away(caller.chance.uniform(0.0, 1.0))
    await caller.stream(COMPLETIONS, body=body)


async def in_background(caller: Caller) -> None:
    """A background request, polled."""
    await caller.post(COMPLETIONS, body_for(caller.record, background=True))
    await caller.wait_for(caller.record.job_ids[0])


async def native(caller: Caller) -> None:
    """A native job that somebody else would read; some are to run a little later."""
    later = int(time.time()) + caller.chance.choice([0, 0, 2])
    await caller.post(JOBS, body_for(caller.record, run_at=later))
    await caller.wait_for(caller.record.job_ids[0])


async def with_events(caller: Caller) -> None:
    """A native job whose events are read, with one break."""
    await caller.post(JOBS, body_for(caller.record, stream=caller.chance.random() < 0.5))
    path = f"{JOBS}/{ids.JOB}{caller.record.job_ids[0]}/events"
    await caller.stream(path, leave_after=caller.chance.randint(1, 12))
    if caller.record.reading.ended is None:
        await caller.stay_away(0.0)
        await caller.stream(path)


async def array(caller: Caller) -> None:
    """Many at once, each polled to its end."""
    numbers = range(len(caller.record.asked))
    await caller.post(JOBS, [body_for(caller.record, number) for number in numbers])
    for job_id in caller.record.job_ids:
        await caller.wait_for(job_id)


async def in_a_batch(caller: Caller) -> None:
    """Many as a batch, whose results are read as they come."""
    record = caller.record
    numbers = range(len(record.asked))
    lines = [{"custom_id": f"{number}", "body": body_for(record, number)} for number in numbers]
    status, _, batch = await caller.insist("POST", BATCHES, json={"requests": lines})
    if status != 200:
        record.wrong.append(f"a batch was refused with {status}: {batch}")
        raise Refused
    results = await caller.results_of(batch["id"])
    by_number = {int(each["custom_id"]): each for each in results}
    if len(results) != len(lines) or by_number.keys() != set(numbers):
        record.wrong.append(f"{len(lines)} lines have {len(results)} results")
    record.accept([by_number[number]["id"] for number in numbers], replayed=False)
    for each in results:
        response = each["response"]
        if response is not None and response["status_code"] == 200:
            record.answers[ids.bare(each["id"]) or ""] = ("completed", said(response["body"]))


async def twice_at_once(caller: Caller) -> None:
    """The same request to both apis at the same moment."""
    other = caller.twin()
    body = body_for(caller.record, background=True)
    await asyncio.gather(caller.post(COMPLETIONS, body), other.post(COMPLETIONS, body))
    await caller.wait_for(caller.record.job_ids[0])


async def cancelled(caller: Caller) -> None:
    """A stream that is cancelled in mid-sentence, and read to its end."""
    body = body_for(caller.record, stream=True)
    await caller.stream(COMPLETIONS, body=body, leave_after=caller.chance.randint(1, 20))
    if caller.record.reading.ended is None:
        caller.record.cancelled = True
        await caller.insist(
            "POST", f"{COMPLETIONS}/{ids.COMPLETION}{caller.record.job_ids[0]}/cancel"
        )
        await caller.stream(COMPLETIONS, body=body)


async def deserted(caller: Caller) -> None:
    """A stream whose reader leaves for good."""
    caller.record.deserted = True
    body = body_for(caller.record, stream=True)
    await caller.stream(COMPLETIONS, body=body, leave_after=3)


async def with_deadline(caller: Caller) -> None:
    """A native job that must have started by a moment that has passed or is near."""
    caller.record.expires_at = int(time.time()) + caller.chance.choice([-5, 1, 2, 4])
    await caller.post(JOBS, body_for(caller.record, expires_at=caller.record.expires_at))
    await caller.wait_for(caller.record.job_ids[0])


async def with_time_limit(caller: Caller) -> None:
    """A background request that is to stop after a second, or not to start any more."""
    caller.record.cancelled, caller.record.expires_at = True, int(time.time()) + 1
    body = body_for(caller.record, background=True)
    await caller.post(COMPLETIONS, body, {"Cancel-After": "1s"})
    await caller.wait_for(caller.record.job_ids[0])


MIXTURE: dict[Form, int] = {
    held: 18,
    held_for_an_sdk: 6,
    streamed: 20,
    streamed_with_breaks: 20,
    in_background: 8,
    native: 7,
    with_events: 12,
    array: 3,
    in_a_batch: 3,
    twice_at_once: 4,
    cancelled: 6,
    deserted: 2,
    with_deadline: 3,
    with_time_limit: 2,
}
"""How often each is drawn."""
MANY = {array, in_a_batch}
"""What asks for several jobs at once."""
LIVE = {held, held_for_an_sdk, streamed, streamed_with_breaks, cancelled, deserted}
"""What hangs on its readers."""
STREAMED = LIVE - {held, held_for_an_sdk}
LONG = {deserted, with_time_limit}
"""What would go on for longer than anybody waits."""


def mixed(seed: int, jobs: int) -> Iterator[tuple[Form, Record]]:
    """What is to be asked in a run: so many jobs, the same for every replay."""
    chance = random.Random(f"{seed} forms")
    number = 0
    while number < jobs:
        [form] = chance.choices(list(MIXTURE), list(MIXTURE.values()))
        count = min(chance.randint(*ARRAY), jobs - number) if form in MANY else 1
        asked = [_asked(f"{seed}-{number + one}", chance, form) for one in range(count)]
        record = Record(form.__name__, f"key-{seed}-{number}", asked)
        record.live, record.streamed = form in LIVE, form in STREAMED
        yield form, record
        number += count


def _asked(nonce: str, chance: random.Random, form: Form) -> Asked:
    if form in LONG:
        return Asked(nonce, _text(nonce, LONG_WORDS), PACES[-1])
    model = chance.choice(PACES)
    if chance.random() < MISBEHAVING:
        model = f"{chance.choice(MISBEHAVIOURS)}-{PACES[0]}"
    return Asked(nonce, _text(nonce, chance.randint(*WORDS)), model)


def _text(nonce: str, words: int) -> str:
    return " ".join([f"job-{nonce}", *(f"word{number}" for number in range(words))])


async def call(
    form: Form, record: Record, session: aiohttp.ClientSession, urls: Sequence[str], at: float
) -> None:
    """One caller's life, beginning so many seconds from now."""
    await asyncio.sleep(at)
    try:
        await form(Caller(session, urls, record, record.key))
    except Refused:
        pass  # it is in the record
    except (AssertionError, LookupError, TypeError) as error:  # an answer of an unknown shape
        record.wrong.append(repr(error))
    record.finished = True
