"""Was anything lost, did anything happen twice? What the evidence says, as a list of violations."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from shared.lifecycle import TERMINAL
from shared.prices import Prices
from tests.fakes.upstream import Call
from tests.faults.callers import Asked, Record
from tests.faults.evidence import Evidence, Kept, nonce_of
from tests.faults.machine import GRACE, Freeze

Charge = Literal["lost", "twice", "wrong"]
SLACK = 1.0
"""Seconds by which what a caller measured may differ from what its job did."""
NOTICES_WITHIN = 5.0
"""Seconds for a worker that stood still to learn that its jobs were given away, and to hang up."""


@dataclass(frozen=True)
class Violation:
    """A promise that was broken."""

    charge: Charge
    what: str


def judge(evidence: Evidence) -> list[Violation]:
    """Everything that must not have happened."""
    return [violation for look in LOOKS for violation in look(evidence)]


def _lost(evidence: Evidence) -> Iterator[Violation]:
    """What was accepted is there and has ended, and whoever asked has learned of it."""
    for job_id, kept in evidence.jobs.items():
        if kept.job.status not in TERMINAL:
            reason = f"{kept.job.status}, {kept.job.status_reason}"
            yield Violation("lost", f"{job_id} ({kept.nonce}) has not ended: {reason}")
    for record in evidence.records:
        for job_id in record.job_ids:
            if job_id not in evidence.jobs:
                yield Violation("lost", f"{job_id} was accepted and is not in the database")
        if not record.finished:
            yield Violation(
                "lost", f"a caller ({record.form}, {record.key}, jobs {record.job_ids}) still waits"
            )


def _submitted_twice(evidence: Evidence) -> Iterator[Violation]:
    """One job for each thing asked, the one its caller was told of.

    An SDK's request without a key is known again by the job that it became, once that is committed.
    """
    keyless = {each.asked[0].nonce for each in evidence.records if each.keyless}
    told = {job_id for record in evidence.records for job_id in record.job_ids}
    counts = Counter(kept.nonce for kept in evidence.jobs.values())
    for nonce, count in counts.items():
        if count > (2 if nonce in keyless else 1):
            yield Violation("twice", f"what {nonce} asked became {count} jobs")
    for job_id, kept in evidence.jobs.items():
        if job_id not in told and counts[kept.nonce] == 1:
            yield Violation("twice", f"{job_id} ({kept.nonce}) is a job nobody was told of")


def _ended_twice(evidence: Evidence) -> Iterator[Violation]:
    """A job that completed has one attempt that completed; any other has none."""
    for job_id, kept in evidence.jobs.items():
        outcomes = [attempt.outcome for attempt in kept.attempts]
        expected = 1 if kept.job.status == "completed" else 0
        if outcomes.count("completed") != expected:
            yield Violation("twice", f"{job_id} is {kept.job.status} after {outcomes}")
        elif None in outcomes:
            yield Violation("wrong", f"{job_id} has an attempt without an outcome: {outcomes}")


def _stored(evidence: Evidence) -> Iterator[Violation]:
    """The stored result is what the upstream was to say, and no job ended without a reason."""
    for record, asked, kept in _pairs(evidence):
        job = kept.job
        if job.status == "completed" and kept.text != asked.text:
            yield Violation("wrong", f"{job.id} stored {kept.text!r}, not {asked.text!r}")
        reason = _REASONS.get(job.status)
        if reason is not None and not reason(record, kept):
            yield Violation("wrong", f"{job.id} ({record.form}) {job.status}: {job.error}")


def _charged(evidence: Evidence) -> Iterator[Violation]:
    """A completed job costs what it used, once; one that failed or expired nothing.

    That the books agree with each other is the audit's to say.
    """
    for job_id, kept in evidence.jobs.items():
        job = kept.job
        expected = 0
        if job.status == "completed":
            prices = [Prices.kept(snapshot) for snapshot in (job.prices or {}).values()]
            expected = sum(each.cost(job.usage or {}) for each in prices)
        if (job.cost or 0) != expected and job.status != "cancelled":
            yield Violation("wrong", f"{job_id} {job.status}: costs {job.cost}, not {expected}")


def _may_fail(record: Record, kept: Kept) -> bool:
    """What a reader has seen of a plain stream cannot be said again, also if Redis has lost it."""
    tried_enough = kept.job.attempt - kept.job.forgiven >= kept.job.max_attempts
    seen = bool(kept.text or record.reading.text)
    return record.live and record.streamed and (seen or tried_enough)


def _may_be_cancelled(record: Record, _: Kept) -> bool:
    return record.cancelled or record.deserted or record.longest_absence > GRACE - SLACK


def _may_expire(record: Record, kept: Kept) -> bool:
    ended_at = kept.job.completed_at or 0
    return record.expires_at is not None and ended_at >= record.expires_at * 1000


_REASONS: dict[str, Callable[[Record, Kept], bool]] = {
    "failed": _may_fail,
    "cancelled": _may_be_cancelled,
    "expired": _may_expire,
}


def _read(evidence: Evidence) -> Iterator[Violation]:
    """Every reader saw a beginning of the text, numbered without a gap, and the end there was."""
    for record in evidence.records:
        for wrong in [*record.wrong, *record.reading.wrong]:
            yield Violation("wrong", f"{record.form} {record.job_ids}: {wrong}")
    for record, asked, kept in _pairs(evidence):
        reading, job = record.reading, kept.job
        if not asked.text.startswith(reading.text):
            yield Violation("wrong", f"{job.id} read {reading.text!r} for {asked.text!r}")
        completed = reading.ended == "completed"
        if completed and reading.text != asked.text:
            yield Violation("lost", f"{job.id} was read to its end as {reading.text!r}")
        if reading.ended is not None and completed != (job.status == "completed"):
            yield Violation("wrong", f"{job.id} {job.status}, its reader heard {reading.ended}")
        yield from _answered(record, asked, kept)


def _answered(record: Record, asked: Asked, kept: Kept) -> Iterator[Violation]:
    job = kept.job
    status, text = record.answers.get(job.id, (job.status, kept.text))
    if status != job.status:
        yield Violation("wrong", f"{job.id} {job.status}, its caller was told {status}")
    if status == "completed" and text != asked.text:
        yield Violation("wrong", f"{job.id} was answered with {text!r}")


def _called(evidence: Evidence) -> Iterator[Violation]:
    """No more calls of the upstream than attempts, and one that was answered for each result."""
    tries = Counter[str]()
    for kept in evidence.jobs.values():
        tries[kept.nonce] += len(kept.attempts)
    calls = _calls(evidence)
    for nonce, made in calls.items():
        if len(made) > tries[nonce]:
            yield Violation("twice", f"{nonce}: {len(made)} calls, {tries[nonce]} attempts")
    for job_id, kept in evidence.jobs.items():
        answered = any(call.finished == "done" for call in calls[kept.nonce])
        if kept.job.status == "completed" and not answered:
            yield Violation("wrong", f"{job_id} completed without a call that was answered")


def _overlapped(evidence: Evidence) -> Iterator[Violation]:
    """Two calls for one job at once: only while the worker that made one of them stood still."""
    jobs = Counter(kept.nonce for kept in evidence.jobs.values())
    for nonce, made in _calls(evidence).items():
        if jobs[nonce] > 1:
            continue  # that is charged, or excused, for itself
        for earlier, later in combinations(sorted(made, key=lambda call: call.started_at), 2):
            at_once = earlier.closed_at is None or later.started_at < earlier.closed_at
            if at_once and not _stood_still(evidence, earlier, later):
                yield Violation("twice", f"{nonce} was asked by two at once: {_times(made)}")


def _stood_still(evidence: Evidence, earlier: Call, later: Call) -> bool:
    """Whether one of them may be a zombie's, and the other came while that could not know."""
    return any(
        freeze.since < later.started_at < freeze.until + SLACK
        and (_may_be_a_zombies(earlier, freeze) or _may_be_a_zombies(later, freeze))
        for freeze in evidence.freezes
    )


def _may_be_a_zombies(call: Call, freeze: Freeze) -> bool:
    """Whether it was made by a worker awake, and given up soon after that worker was woken."""
    awake = call.started_at < freeze.since + SLACK or call.started_at > freeze.until
    return awake and call.closed_at is not None and call.closed_at < freeze.until + NOTICES_WITHIN


def _processes(evidence: Evidence) -> Iterator[Violation]:
    """Nothing died of a fault it should live through, nothing spoke of a bug, the audit agrees."""
    for what in [*evidence.deaths, *evidence.broken]:
        yield Violation("wrong", what)
    if evidence.audit:
        yield Violation("wrong", f"sluice doctor --audit: {evidence.audit}")


LOOKS: list[Callable[[Evidence], Iterator[Violation]]] = [
    _lost,
    _submitted_twice,
    _ended_twice,
    _stored,
    _charged,
    _read,
    _called,
    _overlapped,
    _processes,
]


def _pairs(evidence: Evidence) -> Iterator[tuple[Record, Asked, Kept]]:
    """Every job with what was asked of it and by whom."""
    for record in evidence.records:
        for job_id, asked in zip(record.job_ids, record.asked, strict=False):
            if kept := evidence.jobs.get(job_id):
                yield record, asked, kept


def _calls(evidence: Evidence) -> dict[str, list[Call]]:
    by_nonce: dict[str, list[Call]] = defaultdict(list)
    for call in evidence.calls:
        by_nonce[nonce_of(call.body)].append(call)
    return by_nonce


def _times(calls: list[Call]) -> list[str]:
    return [f"{call.started_at:.2f}–{call.closed_at or 0:.2f} {call.finished}" for call in calls]
