"""Holds, costs, limits, fallbacks, and a log of what administrators do"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS: dict[str, list[sa.Column[object]]] = {
    "accounts": [
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("limits", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
    ],
    "api_keys": [
        sa.Column("models", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("limits", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("credit_limit", sa.BigInteger(), nullable=True),
        sa.Column("credit_period", sa.String(), nullable=True),
        sa.Column("spent", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_since", sa.BigInteger(), server_default="0", nullable=False),
    ],
    "attempts": [
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("upstream_status", sa.Integer(), nullable=True),
    ],
    "jobs": [
        sa.Column("target", sa.Integer(), server_default="0", nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=True),
        sa.Column("prices", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("cost", sa.BigInteger(), nullable=True),
        sa.Column("cost_estimated", sa.Boolean(), server_default="0", nullable=False),
    ],
}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.add_column(column)
            if table == "accounts":
                batch.create_check_constraint("held_never_negative", "held >= 0")


def downgrade() -> None:
    """Undo."""
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table) as batch:
            if table == "accounts":
                batch.drop_constraint("held_never_negative", type_="check")
            for column in columns:
                batch.drop_column(str(column.name))
    op.drop_table("audit_entries")
