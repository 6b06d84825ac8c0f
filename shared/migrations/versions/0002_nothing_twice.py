"""Idempotency keys, deadlines, losses, retention of content; what has ended changes no more"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OUTCOME = (
    "status, attempt, forgiven, losses, worker_id, started_at, first_delta_at, completed_at, "
    "deltas, characters, usage, error, model, served_model, provider, account_id, key_id"
)
ENDED = "OLD.status IN ('cancelled', 'completed', 'expired', 'failed')"
QUEUED = "status = 'queued'"
SAID = "request, response, log, log_first_seq"
KEPT = "OLD.log IS NOT NULL"
# The database itself refuses to rewrite how a job ended and what it said.
IMMUTABLE = {
    "sqlite": [
        "DROP TRIGGER jobs_ended_for_good",
        f"""
        CREATE TRIGGER jobs_ended_for_good BEFORE UPDATE OF {OUTCOME} ON jobs WHEN {ENDED}
        BEGIN SELECT RAISE(ABORT, 'a job that has ended does not change'); END
        """,
        f"""
        CREATE TRIGGER contents_kept_for_good BEFORE UPDATE OF {SAID} ON job_contents WHEN {KEPT}
        BEGIN SELECT RAISE(ABORT, 'a job that has ended does not change'); END
        """,
    ],
    "postgresql": [
        "DROP TRIGGER jobs_ended_for_good ON jobs",
        f"""
        CREATE TRIGGER jobs_ended_for_good BEFORE UPDATE OF {OUTCOME} ON jobs
        FOR EACH ROW WHEN ({ENDED}) EXECUTE FUNCTION refuse_to_reopen()
        """,
        f"""
        CREATE TRIGGER contents_kept_for_good BEFORE UPDATE OF {SAID} ON job_contents
        FOR EACH ROW WHEN ({KEPT}) EXECUTE FUNCTION refuse_to_reopen()
        """,
    ],
}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "idempotency_keys",
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("job_ids", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"]),
        sa.PrimaryKeyConstraint("account_id", "scope", "key"),
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created_at"])
    op.add_column("jobs", sa.Column("fingerprint", sa.LargeBinary(), nullable=True))
    op.add_column("jobs", sa.Column("losses", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("stop_at", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("content_deleted_at", sa.BigInteger(), nullable=True))
    op.drop_index("ix_jobs_queued", "jobs")
    _index("ix_jobs_queued", ["lane", "hinted_at", "run_at", "id"], QUEUED)
    _index("ix_jobs_lost", ["losses"], "losses > 0 AND completed_at IS NULL")
    _index("ix_jobs_stopping", ["stop_at"], "stop_at IS NOT NULL AND completed_at IS NULL")
    _index(
        "ix_jobs_with_content",
        ["completed_at"],
        "completed_at IS NOT NULL AND content_deleted_at IS NULL",
    )
    _index("ix_jobs_fingerprint", ["account_id", "fingerprint", "id"], "fingerprint IS NOT NULL")
    for statement in IMMUTABLE[op.get_bind().dialect.name]:
        op.execute(statement)


def _index(name: str, columns: list[str], condition: str) -> None:
    clause = sa.text(condition)
    op.create_index(name, "jobs", columns, sqlite_where=clause, postgresql_where=clause)


def downgrade() -> None:
    """Undo, but for the triggers: what they forbid was never right."""
    for index in (
        "ix_jobs_lost",
        "ix_jobs_stopping",
        "ix_jobs_with_content",
        "ix_jobs_fingerprint",
    ):
        op.drop_index(index, "jobs")
    op.drop_index("ix_jobs_queued", "jobs")
    _index("ix_jobs_queued", ["lane", "hinted_at", "id"], QUEUED)
    for column in ("fingerprint", "losses", "stop_at", "content_deleted_at"):
        op.drop_column("jobs", column)
    op.drop_table("idempotency_keys")
