"""The audit of files, batches and deliveries: silent on a whole life, and on nothing else."""

import json
from dataclasses import asdict
from typing import NamedTuple

from sqlalchemy import text

from shared import accounts, batches, events, files, ledger, webhooks
from shared.audit import examine
from shared.batch_progress import Counts
from shared.lifecycle import JobStatus
from tests.batches import accepted, advance, begun, input_file, new_batch, run
from tests.factories import Sessions

FILE, BATCH, DELIVERY = "file_fits", "batch_is_its_lines", "delivery_is_its_attempts"
FILES, BATCHES, JOBS, DELIVERIES = (
    f"UPDATE {table} SET " for table in ("files", "batches", "jobs", "deliveries")
)
INPUT = " WHERE batch_id IS NULL AND status = 'processed'"
OUTPUT = " WHERE batch_id IS NOT NULL"
ENDED = " WHERE status = 'completed'"
FIRST = " WHERE result_number = 1"

NOTHING = json.dumps({"counts": asdict(Counts()), "errors": []})


class Damage(NamedTuple):
    """What breaks a rule, and what makes it whole again."""

    rule: str
    change: str
    undo: str


DAMAGES = [
    Damage(FILE, FILES + "bytes = 0" + INPUT, FILES + "bytes = 9" + INPUT),
    Damage(
        FILE,
        FILES + "status = 'new' WHERE status = 'error'",
        FILES + "status = 'error' WHERE status = 'new'",
    ),
    Damage(
        FILE,
        FILES + "status_details = NULL WHERE status = 'error'",
        FILES + "status_details = 'Bad.' WHERE status = 'error'",
    ),
    Damage(
        FILE,
        FILES + "expires_at = NULL WHERE status = 'uploaded'",
        FILES + "expires_at = 1 WHERE status = 'uploaded'",
    ),
    Damage(FILE, FILES + "purpose = 'vision'" + INPUT, FILES + "purpose = 'batch'" + INPUT),
    Damage(
        FILE,
        FILES + "purpose = 'batch'" + OUTPUT,
        FILES + "purpose = 'batch_output'" + OUTPUT,
    ),
    Damage(BATCH, BATCHES + "ended_at = NULL" + ENDED, BATCHES + "ended_at = 1" + ENDED),
    Damage(BATCH, BATCHES + "total = 4" + ENDED, BATCHES + "total = 3" + ENDED),
    Damage(BATCH, BATCHES + "results = 4" + ENDED, BATCHES + "results = 3" + ENDED),
    Damage(
        BATCH,
        BATCHES + "cost = cost + 1" + ENDED,
        BATCHES + "cost = cost - 1" + ENDED,
    ),
    Damage(
        BATCH,
        BATCHES + "errors = NULL WHERE status = 'failed'",
        BATCHES + """errors = '[1]' WHERE status = 'failed'""",
    ),
    Damage(
        BATCH,
        BATCHES + "summary = NULL WHERE status = 'failed'",
        BATCHES + f"summary = '{NOTHING}' WHERE status = 'failed'",
    ),
    Damage(
        BATCH,
        BATCHES + f"summary = '{NOTHING}' WHERE status = 'in_progress'",
        BATCHES + "summary = NULL WHERE status = 'in_progress'",
    ),
    Damage(
        BATCH,
        JOBS + "result_number = 4" + FIRST,
        JOBS + "result_number = 1 WHERE result_number = 4",
    ),
    Damage(
        BATCH,
        JOBS + "line = NULL" + FIRST,
        JOBS + "line = 1" + FIRST,
    ),
    Damage(
        BATCH,
        BATCHES + "status = 'completed', ended_at = 1, results = 0 WHERE status = 'in_progress'",
        BATCHES + "status = 'in_progress', ended_at = NULL WHERE read_lines = 1",
    ),
    Damage(
        BATCH,
        JOBS + "account_id = (SELECT id FROM accounts WHERE name = 'theirs')"
        " WHERE status = 'queued'",
        JOBS + "account_id = (SELECT id FROM accounts WHERE name = 'ours') WHERE status = 'queued'",
    ),
    Damage(
        DELIVERY,
        DELIVERIES + "next_at = NULL",
        DELIVERIES + "next_at = 1",
    ),
    Damage(DELIVERY, DELIVERIES + "attempt = 1", DELIVERIES + "attempt = 0"),
    Damage(
        DELIVERY,
        DELIVERIES + "status = 'delivered', next_at = NULL, ended_at = 1",
        DELIVERIES + "status = 'pending', next_at = 1, ended_at = NULL",
    ),
    Damage(
        DELIVERY,
        DELIVERIES + "status = 'lost'",
        DELIVERIES + "status = 'pending'",
    ),
]


def test_each_rule_speaks_when_it_alone_is_broken(sessions: Sessions) -> None:
    """One row is changed by hand, and changed back."""
    with sessions() as session:
        account = accounts.ensure(session, "ours")
        accounts.ensure(session, "theirs")
        ledger.grant(session, account.id, 10**9, note="")
        webhooks.create(
            session, account.id, {"url": "https://a.example", "events": list(events.BATCH)}
        )
        ended = begun(session, 3, body={"model": "dear"})
        for number, status in ((1, JobStatus.COMPLETED), (2, JobStatus.FAILED)):
            run(session, ended, number, status)
        run(session, ended, 3, JobStatus.COMPLETED)
        advance(session, ended)
        begun(session, 1)
        accepted(session, 2)
        bad = input_file(session, 1, problem="Bad.")
        batches.create(session, new_batch(bad), None, None)
        files.begin(session, account.id, "in.jsonl", files.BATCH)

    assert examine(sessions.engine).flaws == []
    for damage in DAMAGES:
        with sessions() as session:
            session.connection().execute(text(damage.change))
        found = {flaw.rule for flaw in examine(sessions.engine).flaws}
        assert found == {damage.rule}, damage.change
        with sessions() as session:
            session.connection().execute(text(damage.undo))
    report = examine(sessions.engine)
    assert report.flaws == []
    assert {name: report.checked[name] for name in ("files", "batches", "deliveries")} == {
        "files": 7,
        "batches": 4,
        "deliveries": 4,
    }
