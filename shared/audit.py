"""Check every invariant over the whole database, in small reads, also while the service runs."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Engine, func, tuple_
from sqlmodel import Session, col, select

from shared import audit_batches, audit_webhooks, ids, invariants
from shared.flaws import Flaw, Page, Report
from shared.invariants import Kept, Records
from shared.ledger import HOLD, RELEASE
from shared.lifecycle import JobStatus
from shared.tables import (
    Account,
    Attempt,
    IdempotencyKey,
    Job,
    JobContent,
    JobMetadata,
    LedgerEntry,
    Worker,
)

AT_ONCE: Final = 100
"""Jobs, or accounts, that one read looks at."""
KEYS_AT_ONCE: Final = 20
"""Idempotency keys that one read looks at; each may stand for a thousand jobs."""


def examine(engine: Engine, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Look at everything; `on_progress` hears how many of how many jobs are done."""
    report, snapshots = Report(), _snapshots(engine)
    with Session(snapshots) as session:
        total = session.exec(select(func.count()).select_from(Job)).one()
    for name, look in LOOKS.items():
        page = Page(0, [], "")
        while page.last is not None:
            # One transaction a page: long ones would keep the database from tidying up.
            with Session(snapshots) as session:
                page = look(session, page.last)
            report.checked[name] += page.checked
            for flaw in page.flaws:
                report.note(flaw)
            if on_progress is not None:
                on_progress(report.checked["jobs"], total)
    return report


def _snapshots(engine: Engine) -> Engine:
    """Its transactions only read, and see one moment however many statements they have."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return engine.execution_options(reads_only=True)


def _jobs(session: Session, after: str) -> Page:
    page = _records(session, after)
    flaws = [
        Flaw(rule.__name__, ids.JOB + records.job.id, sentence, rule in invariants.PASSING)
        for records in page
        for rule in invariants.RULES
        for sentence in rule(records)
    ]
    return Page(len(page), flaws, page[-1].job.id if len(page) == AT_ONCE else None)


def _records(session: Session, after: str) -> list[Records]:
    """The next jobs with all that belongs to them."""
    page = select(Job).where(col(Job.id) > after).order_by(col(Job.id)).limit(AT_ONCE)
    jobs = session.exec(page).all()
    job_ids = [job.id for job in jobs]
    tries: dict[str, list[Attempt]] = {job_id: [] for job_id in job_ids}
    of_these = select(Attempt).where(col(Attempt.job_id).in_(job_ids))
    for tried in session.exec(of_these.order_by(col(Attempt.number))):
        tries[tried.job_id].append(tried)
    pairs: dict[str, dict[str, str]] = {job_id: {} for job_id in job_ids}
    for pair in session.exec(select(JobMetadata).where(col(JobMetadata.job_id).in_(job_ids))):
        pairs[pair.job_id][pair.key] = pair.value
    kept = _said(session, job_ids)
    moved: dict[str, dict[str, int]] = {job_id: {} for job_id in job_ids}
    for entry in session.exec(select(LedgerEntry).where(col(LedgerEntry.job_id).in_(job_ids))):
        moved[str(entry.job_id)][entry.kind] = entry.credits
    holders = {job.worker_id for job in jobs if job.status == JobStatus.IN_PROGRESS}
    alive = set(
        session.exec(select(Worker.id).where(col(Worker.id).in_(holders), col(Worker.alive)))
    )
    return [
        Records(
            job=job,
            tries=tries[job.id],
            kept=kept.get(job.id),
            pairs=pairs[job.id],
            entries=moved[job.id],
            held=job.worker_id in alive,
        )
        for job in jobs
    ]


def _said(session: Session, job_ids: list[str]) -> dict[str, Kept]:
    # Not the requests: they may be megabytes each, and have no say in this.
    found = select(
        col(JobContent.job_id),
        col(JobContent.response),
        col(JobContent.log),
        col(JobContent.log_first_seq),
    ).where(col(JobContent.job_id).in_(job_ids))
    return {
        job_id: Kept(response, log, first_seq)
        for job_id, response, log, first_seq in session.exec(found)
    }


def _keys(session: Session, after: tuple[str, str, str] | str) -> Page:
    """An idempotency key leads to jobs of its own account, or to none any more."""
    place = (col(IdempotencyKey.account_id), col(IdempotencyKey.scope), col(IdempotencyKey.key))
    onward = select(IdempotencyKey).order_by(*place).limit(KEYS_AT_ONCE)
    keys = session.exec(onward.where(tuple_(*place) > after) if after else onward).all()
    job_ids = [job_id for key in keys for job_id in key.job_ids]
    of_these = select(Job.id, Job.account_id).where(col(Job.id).in_(job_ids))
    owners = dict(session.exec(of_these).all())
    flaws = [
        Flaw(
            "key_is_its_accounts",
            f"{key.account_id} {key.scope} {key.key}",
            f"It leads to {ids.JOB}{job_id}, which belongs to {owners[job_id]}.",
        )
        for key in keys
        for job_id in key.job_ids
        if owners.get(job_id, key.account_id) != key.account_id
    ]
    full = len(keys) == KEYS_AT_ONCE
    last = (keys[-1].account_id, keys[-1].scope, keys[-1].key) if full else None
    return Page(len(keys), flaws, last)


def _balances(session: Session, after: str) -> Page:
    """What an account can spend, and what is set aside of it, is what the ledger says."""
    of_it = col(LedgerEntry.account_id) == col(Account.id)
    entries = select(func.coalesce(func.sum(LedgerEntry.credits), 0)).where(of_it)
    holds = entries.where(col(LedgerEntry.kind).in_((HOLD, RELEASE)))
    balances = select(Account, entries.scalar_subquery(), holds.scalar_subquery())
    onward = balances.where(col(Account.id) > after).order_by(col(Account.id)).limit(AT_ONCE)
    page = session.exec(onward).all()
    flaws = [
        Flaw(
            "balance_is_the_ledgers",
            account.id,
            f"It has {has} nano-credits {where}, and its ledger adds up to {summed}.",
        )
        for account, total, moved in page
        for has, summed, where in (
            (account.credits, total, "to spend"),
            (account.held, -moved, "set aside"),
        )
        if has != summed
    ]
    return Page(len(page), flaws, page[-1][0].id if len(page) == AT_ONCE else None)


LOOKS: Final[Mapping[str, Callable[[Session, Any], Page]]] = {
    "jobs": _jobs,
    "idempotency keys": _keys,
    "accounts": _balances,
    "files": audit_batches.files,
    "batches": audit_batches.batches,
    "deliveries": audit_webhooks.deliveries,
}
"""What is looked at, in pages that go on after the last row of the one before."""
