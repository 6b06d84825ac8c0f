"""Indexes of jobs: who waits for a turn, who is open, what is unpaid, and the lines of batches"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WAITING = "status = 'queued' AND hinted_at IS NULL AND run_at IS NULL"
INDEXES = {
    "ix_jobs_custom_id": (["batch_id", "custom_id"], "custom_id IS NOT NULL"),
    "ix_jobs_in_place": (
        ["account_id", "key_id", "model"],
        "completed_at IS NULL AND NOT background",
    ),
    "ix_jobs_line": (["batch_id", "status", "id"], "line IS NOT NULL"),
    "ix_jobs_result": (["batch_id", "result_number"], "result_number IS NOT NULL"),
    "ix_jobs_unpaid": (["unpaid"], "unpaid IS NOT NULL"),
    "ix_jobs_unnumbered": (
        ["batch_id", "completed_at", "id"],
        "line IS NOT NULL AND completed_at IS NOT NULL AND result_number IS NULL",
    ),
    "ix_jobs_waiting": (
        ["lane", "account_id", "model", "id"],
        f"{WAITING} AND batch_id IS NULL",
    ),
    "ix_jobs_waiting_lines": (["batch_id", "model", "id"], f"{WAITING} AND batch_id IS NOT NULL"),
}
UNIQUE = {"ix_jobs_custom_id", "ix_jobs_result"}


def upgrade() -> None:
    """Apply. PostgreSQL builds them beside whoever uses the table, which may take minutes."""
    with op.get_context().autocommit_block():
        for name, (columns, condition) in INDEXES.items():
            # One that an earlier try has left half built has to go.
            op.drop_index(name, "jobs", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                "jobs",
                columns,
                unique=name in UNIQUE,
                sqlite_where=sa.text(condition),
                postgresql_where=sa.text(condition),
                postgresql_concurrently=True,
            )


def downgrade() -> None:
    """Undo."""
    for name in INDEXES:
        op.drop_index(name, "jobs")
