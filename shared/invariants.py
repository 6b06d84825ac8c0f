"""What must be true of a job's rows, whatever has happened to it: pure, one function a rule."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from shared import ids, streams
from shared.chat import Transcript
from shared.ledger import CHARGE, HOLD, RELEASE
from shared.lifecycle import NEXT, TERMINAL, JobStatus
from shared.prices import NANO
from shared.tables import Attempt, Job


@dataclass(frozen=True, slots=True)
class Kept:
    """What was said, as it is stored."""

    response: bytes | None
    log: bytes | None
    log_first_seq: int


@dataclass(frozen=True, slots=True)
class Records:
    """Everything the database holds about one job, as of one moment."""

    job: Job
    tries: Sequence[Attempt]
    """Oldest first."""
    kept: Kept | None
    pairs: Mapping[str, str]
    """Its metadata, as lists are filtered by it."""
    entries: Mapping[str, int]
    """What the ledger says of it: nano-credits by kind."""
    held: bool
    """Its worker's lease is alive."""


Rule = Callable[[Records], Iterable[str]]
"""Says in a sentence each what is wrong; nothing when all is well."""

LOST: Final = frozenset({"lost", "late"})
"""A worker that was presumed dead, whether or not it was heard of again."""
AGAIN: Final = frozenset({"retry", "fell_back", "handed_back", *LOST})
"""Outcomes after which a job may have another attempt, or end while it waits for one."""
LAST: Final[Mapping[str, frozenset[str | None]]] = {
    JobStatus.QUEUED: AGAIN,
    JobStatus.IN_PROGRESS: frozenset({None}),
    JobStatus.COMPLETED: frozenset({"completed"}),
    JobStatus.FAILED: AGAIN | {"failed"},
    JobStatus.CANCELLED: AGAIN | {"cancelled"},
    JobStatus.EXPIRED: frozenset(),
}
"""Outcomes that the last attempt of a job in this status may have; None: it is under way."""


def _unless(*checks: tuple[bool, str]) -> Iterator[str]:
    return (sentence for holds, sentence in checks if not holds)


def status_fits(records: Records) -> Iterator[str]:
    """The columns say the same as the status."""
    job = records.job
    runs, waits = job.status == JobStatus.IN_PROGRESS, job.status == JobStatus.QUEUED
    reasoned = job.status in (JobStatus.FAILED, JobStatus.EXPIRED)
    spotless = waits or job.status == JobStatus.COMPLETED
    return _unless(
        (job.status in NEXT, f"Its status {job.status!r} is none."),
        (
            (job.status in TERMINAL) == (job.completed_at is not None),
            f"It is {job.status}, and completed_at is {job.completed_at}.",
        ),
        (not runs or job.worker_id is not None, "It runs without a worker."),
        (not runs or job.attempt > 0, "It runs without an attempt."),
        (not waits or job.worker_id is None, f"It waits, and {job.worker_id} holds it."),
        (not waits or job.cancel_requested_at is None, "It was asked to stop, and waits."),
        (not reasoned or job.error is not None, f"It is {job.status} without an error."),
        (not spotless or job.error is None, f"It is {job.status} with an error."),
    )


def attempts_are_numbered(records: Records) -> Iterator[str]:
    """From 1 to the fence, without gaps."""
    numbers = [tried.number for tried in records.tries]
    fence = records.job.attempt
    return _unless(
        (
            numbers == list(range(1, fence + 1)),
            f"Its attempts are {numbers or 'none'}, and its fence is {fence}.",
        )
    )


def outcomes_fit(records: Records) -> Iterator[str]:
    """It ended as its last attempt did, and no attempt followed on one that ended it."""
    job, tries = records.job, records.tries
    for tried in tries[:-1]:
        if tried.outcome not in AGAIN:
            yield f"Attempt {tried.number} was {tried.outcome or 'under way'} when the next began."
    if tries and tries[-1].outcome not in LAST.get(job.status, ()):
        yield f"It is {job.status}, and its last attempt {tries[-1].outcome or 'under way'}."
    if not tries and job.status == JobStatus.COMPLETED:
        yield "It is completed without an attempt."
    for tried in tries:
        if (tried.outcome is None) != (tried.ended_at is None):
            yield f"Attempt {tried.number} is {tried.outcome}, and ended_at is {tried.ended_at}."
    if tries and tries[-1].worker_id != (job.worker_id or tries[-1].worker_id):
        yield f"{job.worker_id} holds it, and its attempt is {tries[-1].worker_id}'s."


def tries_are_counted(records: Records) -> Iterator[str]:
    """What was lost and what was forgiven is what its attempts say."""
    job = records.job
    outcomes = [tried.outcome for tried in records.tries]
    lost, forgivable = sum(word in LOST for word in outcomes), _forgivable(outcomes)
    if job.status == JobStatus.CANCELLED:
        # One that was to be followed by another, and had been asked to stop, was not forgiven.
        forgivable |= _forgivable(outcomes[:-1])
    tries = job.attempt - job.forgiven
    return _unless(
        (job.losses == lost, f"It counts {job.losses} losses, its attempts {lost}."),
        (
            job.forgiven in forgivable,
            f"It forgave {job.forgiven} attempts; by its attempts, {sorted(forgivable)}.",
        ),
        (tries <= job.max_attempts, f"It had {tries} tries of {job.max_attempts}."),
    )


def _forgivable(outcomes: Sequence[str | None]) -> set[int]:
    """How many attempts may be forgiven: all before it fell back, what was handed back since."""
    before = max((n for n, word in enumerate(outcomes, 1) if word == "fell_back"), default=0)
    since = Counter(outcomes[before:])
    least = before + since["handed_back"]
    return set(range(least, least + sum(since[word] for word in LOST) + 1))


def content_is_there(records: Records) -> Iterator[str]:
    """Until retention takes it, and only from a job that has ended."""
    deleted_at = records.job.content_deleted_at
    return _unless(
        (
            (records.kept is None) == (deleted_at is not None),
            f"Its content is {'missing' if records.kept is None else 'there'}, "
            f"and content_deleted_at is {deleted_at}.",
        ),
        (
            deleted_at is None or records.job.status in TERMINAL,
            f"It is {records.job.status}, and its content was deleted.",
        ),
    )


def result_is_whole(records: Records) -> Iterator[str]:
    """A completed job has its answer, and one that has not ended has none."""
    job, kept = records.job, records.kept
    if kept is None:
        return
    if job.status not in TERMINAL and (kept.response or kept.log) is not None:
        yield f"It is {job.status}, and has a result."
    if kept.response is not None:
        yield from _ill_formed(job, _parsed(kept.response))
    elif job.status == JobStatus.COMPLETED or job.deltas > 0:
        yield "It spoke, and has no result."


def _ill_formed(job: Job, response: Any) -> Iterator[str]:
    if not isinstance(response, dict) or response.get("object") != "chat.completion":
        yield "Its result is no chat.completion."
        return
    choices = response.get("choices") or []
    if response.get("id") != ids.COMPLETION + job.id:
        yield f"Its result is that of {response.get('id')}."
    if job.status == JobStatus.COMPLETED:
        if not choices:
            yield "Its result has no choices."
        elif not all(choice.get("finish_reason") for choice in choices):
            yield "A choice of its result has no finish_reason."


def log_retells_result(records: Records) -> Iterator[str]:
    """Whoever replays the archived log gets what is stored, and as much as the row counts."""
    job, kept = records.job, records.kept
    if kept is None or job.status not in TERMINAL:
        return
    if kept.log is None and kept.response is None and job.deltas == 0:
        return  # it ended in no worker's hands
    transcript = Transcript()
    try:
        lines = streams.unpack(kept.log or b"")
        for chunk in map(orjson.loads, lines):
            transcript.add(chunk.get("choices") or [], chunk)
    except (AttributeError, TypeError, ValueError, zlib.error):
        yield "Its archived log cannot be read."
        return
    end = kept.log_first_seq + job.deltas
    told = orjson.loads(orjson.dumps(transcript.choices()))
    said = _parsed(kept.response) if kept.response else {"choices": told}
    yield from _unless(
        (len(lines) == job.deltas, f"It counts {job.deltas} deltas, its log {len(lines)}."),
        (
            transcript.characters == job.characters,
            f"It counts {job.characters} characters, its log {transcript.characters}.",
        ),
        (job.last_seq >= end, f"Its last_seq is {job.last_seq}, its log ends with {end}."),
        (
            isinstance(said, dict) and said.get("choices") == told,
            "Its archived log tells something other than its result.",
        ),
    )


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return None


def metadata_is_found(records: Records) -> Iterator[str]:
    """The pairs by which lists are filtered are those that are shown."""
    shown = records.job.job_metadata or {}
    return _unless(
        (records.pairs == shown, f"It has {len(shown)} metadata pairs, lists find other ones.")
    )


def money_moved_once(records: Records) -> Iterator[str]:
    """What was held is held until the end, and then released, and what it cost is charged."""
    job = records.job
    expected = {}
    if job.held is not None:
        expected[HOLD] = -job.held
        if job.status in TERMINAL:
            expected[RELEASE] = job.held
        if job.cost:
            expected[CHARGE] = -job.cost
    free = job.status not in (JobStatus.COMPLETED, JobStatus.CANCELLED)
    return _unless(
        (
            dict(records.entries) == expected,
            f"Its entries are {dict(records.entries)} and should be {expected}.",
        ),
        (not (free and job.cost), f"It is {job.status}, and cost {job.cost} nano-credits."),
        (
            (job.cost is not None) == (job.held is not None and job.status in TERMINAL),
            f"It is {job.status}, held {job.held} nano-credits, and its cost is {job.cost}.",
        ),
    )


def bill_adds_up(records: Records) -> Iterator[str]:
    """What was charged, and what the account could not pay, is what the answer says it cost."""
    job = records.job
    told = (job.usage or {}).get("cost") if job.status == JobStatus.COMPLETED else None
    cost, unpaid = job.cost or 0, job.unpaid or 0
    return _unless(
        (
            job.held is None or told is None or cost + unpaid == round(told * NANO),
            f"It says that it cost {told}; {cost} nano-credits are charged, {unpaid} unpaid.",
        ),
        (
            job.unpaid is None or (unpaid > 0 and cost >= (job.held or 0)),
            f"Of {job.held} nano-credits held {cost} are charged, and {unpaid} unpaid.",
        ),
    )


def hold_is_due_once(records: Records) -> Iterator[str]:
    """What a line may cost is owed while it waits for its turn, and held from then on."""
    job = records.job
    due = job.hold_due is not None
    return _unless(
        (not due or job.held is None, f"It holds {job.held} nano-credits and owes {job.hold_due}."),
        (
            not due or (job.attempt == 0 and job.status != JobStatus.IN_PROGRESS),
            f"It is {job.status} after {job.attempt} attempts, and owes its hold.",
        ),
    )


def lease_is_alive(records: Records) -> Iterator[str]:
    """What runs is in a live worker's hands; otherwise the control loops take it back."""
    job = records.job
    runs = job.status == JobStatus.IN_PROGRESS
    held = records.held or job.worker_id is None
    return _unless((not runs or held, f"Its worker {job.worker_id} is gone."))


RULES: Final[Sequence[Rule]] = (
    status_fits,
    attempts_are_numbered,
    outcomes_fit,
    tries_are_counted,
    content_is_there,
    result_is_whole,
    log_retells_result,
    metadata_is_found,
    money_moved_once,
    bill_adds_up,
    hold_is_due_once,
    lease_is_alive,
)
PASSING: Final[frozenset[Rule]] = frozenset({lease_is_alive})
"""What these find may pass by itself while the service runs."""
