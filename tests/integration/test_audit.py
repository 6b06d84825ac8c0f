"""The audit: silent on what came about by ordinary ways; of anything else it says what is wrong."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text
from sqlmodel import Session
from typer.testing import CliRunner

from cli.failure import FAILED
from cli.main import app
from shared import (
    accounts,
    clock,
    deadlines,
    hints,
    jobs,
    leases,
    ledger,
    losses,
    retention,
    streams,
)
from shared.audit import examine
from shared.flaws import Report
from shared.invariants import RULES
from shared.leases import Claim
from shared.lifecycle import JobStatus
from shared.outcomes import Cancelled, Completed, Failed, HandedBack, Outcome, Retry
from shared.tables import IdempotencyKey, Job
from tests.factories import FAULT, HOUR, Sessions, claimed, submitted, worker
from tests.factories import spoken as said_of

SOON = timedelta()
LABELS = {"team": "blue"}
COSTLY: dict[str, Any] = {
    "metadata": LABELS,
    "hold": 1_000,
    "prices": {"test": ["1", "1", "1", "2"]},
}
"""A job that may cost a thousand nano-credits, and costs eight."""


def again(session: Session, claim: Claim, outcome: Outcome | None) -> Claim:
    """The job's next attempt, after this one ended so; None: its worker was lost."""
    if outcome is None:
        leases.retire(session, claim.lease.worker_id)
        losses.rescue(session, 10)
    else:
        leases.settle(session, claim.lease, outcome)
    hints.mark(session, [claim.job.id], after_ms=HOUR)
    following = leases.claim(session, claim.job.id, worker(session))
    assert following is not None
    return following


def arrived(session: Session, status: JobStatus) -> Job:
    """A job that came to this status on its second attempt, if by any."""
    ledger.grant(session, accounts.ensure(session, "ours").id, 1_000, note="")
    if status == JobStatus.QUEUED:
        return submitted(session, **COSTLY)
    if status == JobStatus.EXPIRED:
        job = submitted(session, **COSTLY, expires_at=clock.now() - 1)
        assert deadlines.expire(session, 10) == [job]
        return job
    claim = again(session, claimed(session, **COSTLY), Retry(FAULT, SOON))
    said = said_of(claim.job)
    outcomes: dict[JobStatus, Outcome] = {
        JobStatus.COMPLETED: Completed(said),
        JobStatus.FAILED: Failed(FAULT, said),
        JobStatus.CANCELLED: Cancelled(said),
    }
    if status in outcomes:
        leases.settle(session, claim.lease, outcomes[status])
    return claim.job


def eventful(session: Session) -> None:
    """Jobs with everything in their lives that may happen to one."""
    claim = again(session, claimed(session), HandedBack())
    lost = again(session, claim, None)
    leases.settle(session, claim.lease, Completed(said_of(claim.job)))  # too late
    leases.settle(session, lost.lease, Completed(said_of(lost.job)))
    leases.settle(session, lost.lease, Completed(said_of(lost.job)))

    claim = again(session, claimed(session, max_attempts=2), HandedBack())
    for outcome in (Retry(FAULT, SOON), Retry(FAULT, SOON, target=1), None, HandedBack()):
        claim = again(session, claim, outcome)

    for last in (HandedBack(), Retry(FAULT, SOON), Retry(FAULT, SOON, target=1), Cancelled(), None):
        claim = claimed(session)
        jobs.cancel(session, claim.job.account_id, claim.job.id)
        if last is None:
            leases.retire(session, claim.lease.worker_id)
            losses.rescue(session, 10)
        else:
            leases.settle(session, claim.lease, last)

    claim = claimed(session, max_attempts=1)
    leases.retire(session, claim.lease.worker_id)
    losses.rescue(session, 10)

    claim = claimed(session)
    leases.settle(session, claim.lease, Failed(FAULT))

    job = submitted(session, metadata=LABELS)
    jobs.set_metadata(session, job.account_id, job.id, {"team": "red"})
    jobs.cancel(session, job.account_id, job.id)

    account = accounts.ensure(session, "rich")
    ledger.grant(session, account.id, 5, note="")


def spoke(report: Report) -> set[str]:
    """The rules that have found something."""
    return {flaw.rule for flaw in report.flaws}


def test_whatever_came_about_by_ordinary_ways_is_in_order(sessions: Sessions) -> None:
    """Every status, every outcome, deleted content; and all of it was looked at."""
    with sessions() as session:
        for status in JobStatus:
            arrived(session, status)
        retention.anonymise(session, -HOUR, 2)
        eventful(session)

    report = examine(sessions.engine)

    assert report.flaws == []
    assert {name: count for name, count in report.checked.items() if count} == {
        "jobs": 16,
        "accounts": 2,
    }


class Damage(NamedTuple):
    """What plain SQL does to a job in some status, and which rule has to speak."""

    rule: str
    status: JobStatus
    sql: str


JOBS, TRIES, CONTENTS = "UPDATE jobs SET ", "UPDATE attempts SET ", "UPDATE job_contents SET "
OF_JOB, OF_IT = " WHERE id = :id", " WHERE job_id = :id"
OF_TRY = OF_IT + " AND number = "
DAMAGES = [
    Damage("status_fits", JobStatus.COMPLETED, JOBS + "completed_at = NULL" + OF_JOB),
    Damage("status_fits", JobStatus.QUEUED, JOBS + "completed_at = 1" + OF_JOB),
    Damage("status_fits", JobStatus.QUEUED, JOBS + "worker_id = 'wkr_1'" + OF_JOB),
    Damage("status_fits", JobStatus.QUEUED, JOBS + "cancel_requested_at = 1" + OF_JOB),
    Damage("status_fits", JobStatus.IN_PROGRESS, JOBS + "worker_id = NULL" + OF_JOB),
    Damage("status_fits", JobStatus.FAILED, JOBS + "error = NULL" + OF_JOB),
    Damage("status_fits", JobStatus.COMPLETED, JOBS + "error = '{}'" + OF_JOB),
    Damage("attempts_are_numbered", JobStatus.FAILED, JOBS + "attempt = 3" + OF_JOB),
    Damage("attempts_are_numbered", JobStatus.FAILED, "DELETE FROM attempts" + OF_IT),
    Damage("attempts_are_numbered", JobStatus.COMPLETED, "DELETE FROM attempts" + OF_TRY + "1"),
    Damage("outcomes_fit", JobStatus.COMPLETED, TRIES + "outcome = 'completed'" + OF_TRY + "1"),
    Damage("outcomes_fit", JobStatus.COMPLETED, TRIES + "outcome = 'failed'" + OF_TRY + "2"),
    Damage("outcomes_fit", JobStatus.CANCELLED, TRIES + "outcome = 'completed'" + OF_TRY + "2"),
    Damage(
        "outcomes_fit", JobStatus.FAILED, TRIES + "outcome = NULL, ended_at = NULL" + OF_TRY + "2"
    ),
    Damage("outcomes_fit", JobStatus.FAILED, TRIES + "ended_at = NULL" + OF_TRY + "2"),
    Damage("outcomes_fit", JobStatus.IN_PROGRESS, TRIES + "worker_id = 'wkr_1'" + OF_TRY + "2"),
    Damage("tries_are_counted", JobStatus.COMPLETED, JOBS + "forgiven = 1" + OF_JOB),
    Damage("tries_are_counted", JobStatus.COMPLETED, JOBS + "losses = 1" + OF_JOB),
    Damage("tries_are_counted", JobStatus.IN_PROGRESS, JOBS + "max_attempts = 1" + OF_JOB),
    Damage("content_is_there", JobStatus.EXPIRED, "DELETE FROM job_contents" + OF_IT),
    Damage("content_is_there", JobStatus.COMPLETED, JOBS + "content_deleted_at = 1" + OF_JOB),
    Damage("result_is_whole", JobStatus.COMPLETED, CONTENTS + "response = NULL" + OF_IT),
    Damage("result_is_whole", JobStatus.COMPLETED, CONTENTS + "response = :other" + OF_IT),
    Damage("result_is_whole", JobStatus.FAILED, CONTENTS + "response = :list" + OF_IT),
    Damage(
        "result_is_whole", JobStatus.COMPLETED, CONTENTS + "response = :cut, log = :short" + OF_IT
    ),
    Damage("result_is_whole", JobStatus.QUEUED, CONTENTS + "log = :nothing" + OF_IT),
    Damage("log_retells_result", JobStatus.COMPLETED, CONTENTS + "log = :lie" + OF_IT),
    Damage("log_retells_result", JobStatus.FAILED, CONTENTS + "log = request" + OF_IT),
    Damage("log_retells_result", JobStatus.CANCELLED, CONTENTS + "log = NULL" + OF_IT),
    Damage("log_retells_result", JobStatus.COMPLETED, JOBS + "deltas = 1" + OF_JOB),
    Damage("log_retells_result", JobStatus.COMPLETED, JOBS + "characters = 1" + OF_JOB),
    Damage("log_retells_result", JobStatus.COMPLETED, JOBS + "last_seq = 1" + OF_JOB),
    Damage("metadata_is_found", JobStatus.QUEUED, JOBS + "metadata = NULL" + OF_JOB),
    Damage("metadata_is_found", JobStatus.QUEUED, "DELETE FROM job_metadata" + OF_IT),
    Damage("money_moved_once", JobStatus.COMPLETED, JOBS + "cost = 5" + OF_JOB),
    Damage("money_moved_once", JobStatus.COMPLETED, JOBS + "held = 500" + OF_JOB),
    Damage("money_moved_once", JobStatus.CANCELLED, JOBS + "cost = NULL" + OF_JOB),
    Damage("money_moved_once", JobStatus.QUEUED, JOBS + "held = NULL" + OF_JOB),
    Damage("money_moved_once", JobStatus.FAILED, JOBS + "cost = 8" + OF_JOB),
    Damage(
        "money_moved_once",
        JobStatus.EXPIRED,
        "INSERT INTO ledger_entries (id, account_id, job_id, kind, credits, note, created_at)"
        " SELECT id, account_id, id, 'charge', 0, '', 1 FROM jobs" + OF_JOB,
    ),
    Damage("bill_adds_up", JobStatus.COMPLETED, JOBS + "unpaid = 5" + OF_JOB),
    Damage("bill_adds_up", JobStatus.COMPLETED, JOBS + "usage = '{\"cost\": 7e-9}'" + OF_JOB),
    Damage("hold_is_due_once", JobStatus.QUEUED, JOBS + "hold_due = 5" + OF_JOB),
    Damage("hold_is_due_once", JobStatus.COMPLETED, JOBS + "hold_due = 5" + OF_JOB),
    Damage("lease_is_alive", JobStatus.IN_PROGRESS, "UPDATE workers SET alive = false"),
]
PROTECTION = {
    "sqlite": [
        "DROP TRIGGER jobs_ended_for_good",
        "DROP TRIGGER contents_kept_for_good",
        "PRAGMA ignore_check_constraints = ON",
    ],
    "postgresql": [
        "DROP TRIGGER jobs_ended_for_good ON jobs",
        "DROP TRIGGER contents_kept_for_good ON job_contents",
        "ALTER TABLE jobs DROP CONSTRAINT running_is_leased, DROP CONSTRAINT ended_has_a_moment",
    ],
}


def damage(sessions: Sessions, job: Job, sql: str) -> None:
    """Change a job's rows behind everyone's back."""
    said = said_of(job)
    answers: dict[str, Any] = {
        "id": job.id,
        "other": said.response.replace(job.id.encode(), b"0" * 26),
        "list": said.response.replace(b"chat.completion", b"list"),
        "cut": said.response.replace(b'"stop"', b"null"),
        "short": streams.pack(said.log.replace(b'"stop"', b"null")),
        "nothing": streams.pack(b""),
        "lie": streams.pack(said.log.replace(b"there.", b"where?")),
    }
    with sessions() as session:
        used = {name: value for name, value in answers.items() if f":{name}" in sql}
        session.connection().execute(text(sql), used)


def test_each_rule_speaks_when_it_alone_is_broken(sessions: Sessions) -> None:
    """The database's own guards are taken away, and a row is changed by hand, one at a time."""
    with sessions() as session:
        for statement in PROTECTION[sessions.engine.dialect.name]:
            session.connection().execute(text(statement))
    found = []
    for rule, status, sql in DAMAGES:
        with sessions() as session:
            job = arrived(session, status)
        assert spoke(examine(sessions.engine)) == set(), sql
        damage(sessions, job, sql)
        report = examine(sessions.engine)
        found.append((sql, *spoke(report)))
        assert {flaw.subject for flaw in report.flaws} == {f"job_{job.id}"}, sql
        assert bool(report.broken) == (rule != "lease_is_alive")
        with sessions() as session:
            for table in ("ledger_entries", "jobs", "workers"):
                session.connection().execute(text(f"DELETE FROM {table}"))
            session.connection().execute(text("UPDATE accounts SET credits = 0, held = 0"))

    assert found == [(sql, rule) for rule, _, sql in DAMAGES]
    assert {rule.__name__ for rule in RULES} == {damage.rule for damage in DAMAGES}


def test_a_key_leads_to_its_own_accounts_jobs(sessions: Sessions) -> None:
    """Or to deleted ones; never to another account's."""
    with sessions() as session:
        ours, theirs = submitted(session), submitted(session, account="theirs")
        for number in range(25):
            session.add(
                IdempotencyKey(
                    account_id=ours.account_id,
                    scope="POST /v1/jobs",
                    key=f"{number:02}",
                    fingerprint=b"",
                    job_ids=[ours.id, "0" * 26, *([theirs.id] if number == 24 else [])],
                )
            )

    report = examine(sessions.engine)

    assert report.checked["idempotency keys"] == 25
    [flaw] = report.flaws
    assert (flaw.rule, theirs.id in flaw.sentence) == ("key_is_its_accounts", True)
    assert flaw.subject.endswith("POST /v1/jobs 24")


@pytest.mark.parametrize("change", ["credits = 8", "held = 8"])
def test_a_balance_is_the_sum_of_its_ledger(sessions: Sessions, change: str) -> None:
    """Credits that came from nowhere are found."""
    with sessions() as session:
        rich, other = accounts.ensure(session, "rich"), accounts.ensure(session, "other")
        ledger.grant(session, rich.id, 7, note="")
        ledger.grant(session, other.id, 7, note="")
        session.connection().execute(text(f"UPDATE accounts SET {change} WHERE id = '{rich.id}'"))

    [flaw] = examine(sessions.engine).flaws

    assert (flaw.rule, flaw.subject) == ("balance_is_the_ledgers", rich.id)


def test_only_the_first_flaws_are_spelled_out(sessions: Sessions) -> None:
    """A broken million would fill the terminal; they are counted all the same, over all pages."""
    with sessions() as session:
        for _ in range(120):
            submitted(session)
        session.connection().execute(text("DELETE FROM job_contents"))

    report = examine(sessions.engine)

    assert report.broken == {"content_is_there": 120}
    assert len(report.flaws) == 20


def test_a_running_service_is_in_order_at_every_moment(sessions: Sessions) -> None:
    """A job is looked at as of one moment: what changes meanwhile is no contradiction."""

    def live() -> None:
        for _ in range(12):
            with sessions() as session:
                job, mine = submitted(session, metadata=LABELS), worker(session)
            for outcome in (Retry(FAULT, SOON), HandedBack(), Completed(said_of(job))):
                with sessions() as session:
                    hints.mark(session, [job.id], after_ms=HOUR)
                    claim = leases.claim(session, job.id, mine)
                assert claim is not None
                with sessions() as session:
                    leases.settle(session, claim.lease, outcome)
            with sessions() as session:
                retention.anonymise(session, -HOUR, 1)

    reports: list[Report] = []
    with ThreadPoolExecutor(1) as threads:
        living = threads.submit(live)
        while not living.done() or not reports:
            reports.append(examine(sessions.engine))
        living.result()

    assert [report.flaws for report in reports if report.flaws] == []


def test_the_command_says_what_is_broken(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0 and what was checked, or 1 and each flaw; JSON for programs."""
    monkeypatch.setenv("SLUICE_DATABASE_URL", sessions.url)
    with sessions() as session:
        job = arrived(session, JobStatus.COMPLETED)
    healthy = CliRunner().invoke(app, ["doctor", "--audit"])
    damage(sessions, job, "DELETE FROM job_contents WHERE job_id = :id")

    shown = CliRunner().invoke(app, ["doctor", "--audit"])
    plain = CliRunner().invoke(app, ["doctor", "--audit", "--json"])

    assert (healthy.exit_code, shown.exit_code, plain.exit_code) == (0, FAILED, FAILED)
    assert "Nothing is broken. Checked 1 jobs" in healthy.output
    assert f"content_is_there\tjob_{job.id}\tIts content is missing" in shown.output
    report = json.loads(plain.stdout)
    assert report["broken"] == {"content_is_there": 1}
    assert report["flaws"][0]["subject"] == f"job_{job.id}"
