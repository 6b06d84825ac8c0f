"""A judge that sees nothing would find every run in order."""

from collections.abc import Callable

import pytest

from shared import clock
from shared.tables import Attempt, Job
from tests.fakes.upstream import Call
from tests.faults.callers import Asked, Record
from tests.faults.evidence import Evidence, Kept
from tests.faults.judge import Charge, judge
from tests.faults.machine import Freeze

TEXT = "job-1 word0 word1"
JOB_ID = "0" * 26


def in_order() -> Evidence:
    """A run of one streamed job that a worker lost and another completed."""
    now = clock.now()
    job = Job(id=JOB_ID, account_id="a", request_id="r", model="m", status="completed", attempt=2)
    job.completed_at = now
    job.prices, job.usage, job.cost = {"m": ["1", "1", "1", "2"]}, {"completion_tokens": 3}, 6
    attempts = [
        Attempt(job_id=JOB_ID, number=1, worker_id="w1", outcome="lost"),
        Attempt(job_id=JOB_ID, number=2, worker_id="w2", outcome="completed"),
    ]
    record = Record("streamed", "key", [Asked("1", TEXT, "m")], [JOB_ID], finished=True)
    record.reading.pieces = [(1, "job-1"), (2, " word0"), (3, " word1")]
    record.reading.ended = "completed"
    body = {"messages": [{"role": "user", "content": TEXT}]}
    calls = [
        Call("m", body, {}, 1.0, finished="closed_by_client", closed_at=2.0),
        Call("m", body, {}, 3.0, finished="done", closed_at=4.0),
    ]
    return Evidence([record], {JOB_ID: Kept(job, "1", TEXT, attempts)}, calls)


def _forget_the_job(evidence: Evidence) -> None:
    evidence.jobs.clear()


def _never_end(evidence: Evidence) -> None:
    evidence.jobs[JOB_ID].job.status = "queued"


def _keep_waiting(evidence: Evidence) -> None:
    evidence.records[0].finished = False


def _end_the_stream_early(evidence: Evidence) -> None:
    evidence.records[0].reading.pieces.pop()


def _submit_twice(evidence: Evidence) -> None:
    evidence.jobs["1" * 26] = evidence.jobs[JOB_ID]


def _complete_twice(evidence: Evidence) -> None:
    evidence.jobs[JOB_ID].attempts[0].outcome = "completed"


def _call_once_more(evidence: Evidence) -> None:
    evidence.calls = [*evidence.calls, evidence.calls[-1]]


def _call_at_once(evidence: Evidence) -> None:
    evidence.calls[0].closed_at = 3.5


def _hang_on_as_a_zombie(evidence: Evidence) -> None:
    evidence.freezes = [Freeze(0.5, 3.2)]
    evidence.calls[0].closed_at = 9.0


def _call_at_once_while_another_stood_still(evidence: Evidence) -> None:
    evidence.freezes = [Freeze(1.5, 9.0)]
    evidence.calls[0].started_at = 2.9
    evidence.calls[0].closed_at = 3.5


def _call_at_once_but_one(evidence: Evidence) -> None:
    evidence.freezes = [Freeze(0.5, 1.9)]
    evidence.calls[0].closed_at = 3.5
    body = evidence.calls[0].body
    between = Call("m", body, {}, 2.0, finished="closed_by_client", closed_at=2.2)
    evidence.calls = [*evidence.calls, between]
    evidence.jobs[JOB_ID].attempts.append(
        Attempt(job_id=JOB_ID, number=3, worker_id="w3", outcome="lost")
    )


def _store_something_else(evidence: Evidence) -> None:
    evidence.jobs[JOB_ID].text = "job-1 word1 word0"


def _cancel_unasked(evidence: Evidence) -> None:
    evidence.jobs[JOB_ID].job.status = "cancelled"


def _charge_twice(evidence: Evidence) -> None:
    evidence.jobs[JOB_ID].job.cost = 12


def _answer_with_something_else(evidence: Evidence) -> None:
    evidence.records[0].answers[JOB_ID] = ("completed", "job-1")


def _skip_an_id(evidence: Evidence) -> None:
    evidence.records[0].reading.wrong.append("after 1 came 3")


def _break_a_loop(evidence: Evidence) -> None:
    evidence.broken = ["worker-1.log: control_turn_failed"]


def _die(evidence: Evidence) -> None:
    evidence.deaths = ["worker-1.log ended with 1"]


def _fail_the_audit(evidence: Evidence) -> None:
    evidence.audit = "exit 1: broken"


CASES: list[tuple[Callable[[Evidence], None], Charge]] = [
    (_forget_the_job, "lost"),
    (_never_end, "lost"),
    (_keep_waiting, "lost"),
    (_end_the_stream_early, "lost"),
    (_submit_twice, "twice"),
    (_complete_twice, "twice"),
    (_call_once_more, "twice"),
    (_call_at_once, "twice"),
    (_hang_on_as_a_zombie, "twice"),
    (_call_at_once_while_another_stood_still, "twice"),
    (_call_at_once_but_one, "twice"),
    (_store_something_else, "wrong"),
    (_charge_twice, "wrong"),
    (_cancel_unasked, "wrong"),
    (_answer_with_something_else, "wrong"),
    (_skip_an_id, "wrong"),
    (_break_a_loop, "wrong"),
    (_die, "wrong"),
    (_fail_the_audit, "wrong"),
]


def test_a_run_in_order_is_in_order() -> None:
    """A lost attempt alone is what a queue is for."""
    assert judge(in_order()) == []


@pytest.mark.parametrize("spoil,charge", CASES, ids=[spoil.__name__[1:] for spoil, _ in CASES])
def test_the_judge_sees(spoil: Callable[[Evidence], None], charge: Charge) -> None:
    """Each promise has somebody who notices when it is broken."""
    evidence = in_order()
    spoil(evidence)

    assert charge in {violation.charge for violation in judge(evidence)}


def test_an_sdk_without_a_key_may_not_be_known_again() -> None:
    """While a commit is in doubt there is nothing to know it by; only a key is sure."""
    evidence = in_order()
    _submit_twice(evidence)
    evidence.records[0].keyless = True

    assert judge(evidence) == []


def test_a_zombie_may_still_be_talking() -> None:
    """A worker that stood still cannot hang up; what it hears is refused later."""
    evidence = in_order()
    _call_at_once(evidence)
    evidence.freezes = [Freeze(0.5, 3.2)]

    assert judge(evidence) == []
