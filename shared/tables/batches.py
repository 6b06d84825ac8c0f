"""Files and batches. A batch's lines are jobs."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, LargeBinary
from sqlmodel import Field, SQLModel

from shared import clock
from shared.tables.indexes import partial


class File(SQLModel, table=True):
    """An uploaded file, or one that is rendered from rows; the bytes are elsewhere."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_account", "account_id", "id"),
        partial("ix_files_expiring", "expires_at", condition="expires_at IS NOT NULL"),
    )

    id: str = Field(primary_key=True)
    """`file-` and 26 letters; grows with time."""
    account_id: str = Field(foreign_key="accounts.id")
    filename: str
    purpose: str
    bytes: int = Field(default=0, sa_type=BigInteger)
    lines: int = 0
    """Requests in it, if it is a batch's input."""
    models: list[str] = Field(default_factory=list, sa_type=JSON)
    """What its requests ask for."""
    status: str = "uploaded"
    """`uploaded`, `processed` or `error`."""
    status_details: str | None = None
    batch_id: str | None = None
    """The batch whose lines it shows; its bytes are rendered from rows."""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)


class Batch(SQLModel, table=True):
    """Many requests that belong together. Its lines are jobs, and counted until all have ended."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("ix_batches_account", "account_id", "id"),
        partial("ix_batches_open", "id", condition="ended_at IS NULL"),
    )

    id: str = Field(primary_key=True)
    """`batch_` and 26 letters; grows with time."""
    account_id: str = Field(foreign_key="accounts.id")
    key_id: str | None = None
    request_id: str
    endpoint: str
    model: str | None = None
    """What all its lines ask for; null when they differ."""
    status: str = "validating"
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    fingerprint: bytes | None = Field(default=None, sa_type=LargeBinary)
    """SHA-256 of the request, if an SDK sent it that may send it again by itself."""
    completion_window: str = "24h"
    priority: int = 0
    concurrency: int | None = None
    """Lines that may run at once; null is as many as there is room for."""
    total: int = 0
    """Lines, once all are there."""
    read_lines: int = 0
    """Lines of the input that have become jobs: where to go on after a crash."""
    results: int = 0
    """Lines that have ended and have their `result_number`."""
    usage: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """The sum over those."""
    cost: int = Field(default=0, sa_type=BigInteger)
    """Nano-credits that those were charged."""
    errors: list[dict[str, Any]] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    summary: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """How its lines ended, once all have: `counts` and `errors`. Null while it is open."""
    webhook: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    batch_metadata: dict[str, str] | None = Field(
        default=None, sa_type=JSON(none_as_null=True), sa_column_kwargs={"name": "metadata"}
    )
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    in_progress_at: int | None = Field(default=None, sa_type=BigInteger)
    paused_at: int | None = Field(default=None, sa_type=BigInteger)
    cancelling_at: int | None = Field(default=None, sa_type=BigInteger)
    stop_at: int | None = Field(default=None, sa_type=BigInteger)
    """When it is cancelled: past this its running lines are stopped."""
    retry_at: int | None = Field(default=None, sa_type=BigInteger)
    """Its lines that had not completed then are tried anew; null once all of them are."""
    finalizing_at: int | None = Field(default=None, sa_type=BigInteger)
    expires_at: int = Field(default=0, sa_type=BigInteger)
    output_expires_after: int | None = None
    """Seconds its output and error files are kept; null is as long as its jobs."""
    ended_at: int | None = Field(default=None, sa_type=BigInteger)
