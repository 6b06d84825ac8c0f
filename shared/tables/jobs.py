"""Jobs, what was asked and said, every try, and how a request is recognised."""

from typing import Any, Final

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, LargeBinary, Text
from sqlmodel import Field, SQLModel

from shared import clock, ids
from shared.lifecycle import TERMINAL, JobStatus, Lane
from shared.tables.indexes import partial

_QUEUED = f"status = '{JobStatus.QUEUED}'"
_WAITING = f"{_QUEUED} AND hinted_at IS NULL AND run_at IS NULL"
_RUNNING = f"status = '{JobStatus.IN_PROGRESS}'"
IN_PLACE: Final = "completed_at IS NULL AND NOT background"
"""Held and streamed jobs that have not ended; see `shared.places`."""
_ENDED = "status IN ({})".format(", ".join(f"'{status}'" for status in sorted(TERMINAL)))


class Job(SQLModel, table=True):
    """One accepted request. Its status changes only in `jobs`, and in `completing`."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"({_RUNNING}) <= (worker_id IS NOT NULL)", name="running_is_leased"),
        CheckConstraint(f"({_ENDED}) = (completed_at IS NOT NULL)", name="ended_has_a_moment"),
        Index("ix_jobs_account", "account_id", "id"),
        Index("ix_jobs_account_status", "account_id", "status", "id"),
        Index("ix_jobs_account_model", "account_id", "model", "id"),
        Index("ix_jobs_batch", "batch_id", "id"),
        partial(
            "ix_jobs_custom_id",
            *("batch_id", "custom_id"),
            condition="custom_id IS NOT NULL",
            unique=True,
        ),
        partial("ix_jobs_line", "batch_id", "status", "id", condition="line IS NOT NULL"),
        partial(
            "ix_jobs_result",
            *("batch_id", "result_number"),
            condition="result_number IS NOT NULL",
            unique=True,
        ),
        partial(
            "ix_jobs_unnumbered",
            *("batch_id", "completed_at", "id"),
            condition="line IS NOT NULL AND completed_at IS NOT NULL AND result_number IS NULL",
        ),
        partial(
            "ix_jobs_waiting",
            *("lane", "account_id", "model", "id"),
            condition=f"{_WAITING} AND batch_id IS NULL",
        ),
        partial(
            "ix_jobs_waiting_lines",
            *("batch_id", "model", "id"),
            condition=f"{_WAITING} AND batch_id IS NOT NULL",
        ),
        partial("ix_jobs_queued", "lane", "hinted_at", "run_at", "id", condition=_QUEUED),
        partial("ix_jobs_running", "worker_id", condition=_RUNNING),
        partial(
            "ix_jobs_expiring", "expires_at", condition=f"{_QUEUED} AND expires_at IS NOT NULL"
        ),
        partial(
            "ix_jobs_attended",
            "attended_until",
            condition="attended_until IS NOT NULL AND completed_at IS NULL",
        ),
        partial("ix_jobs_in_place", "account_id", "key_id", "model", condition=IN_PLACE),
        partial("ix_jobs_ended", "completed_at", condition="completed_at IS NOT NULL"),
        partial("ix_jobs_unpaid", "unpaid", condition="unpaid IS NOT NULL"),
        partial("ix_jobs_lost", "losses", condition="losses > 0 AND completed_at IS NULL"),
        partial(
            "ix_jobs_stopping", "stop_at", condition="stop_at IS NOT NULL AND completed_at IS NULL"
        ),
        partial(
            "ix_jobs_with_content",
            "completed_at",
            condition="completed_at IS NOT NULL AND content_deleted_at IS NULL",
        ),
        partial(
            "ix_jobs_fingerprint",
            *("account_id", "fingerprint", "id"),
            condition="fingerprint IS NOT NULL",
        ),
    )

    id: str = Field(default_factory=ids.new_id, primary_key=True)
    """26 letters, without a prefix; grows with time."""
    account_id: str = Field(foreign_key="accounts.id")
    key_id: str | None = None
    request_id: str
    """The `x-request-id` of the call that submitted it."""
    fingerprint: bytes | None = Field(default=None, sa_type=LargeBinary)
    """SHA-256 of the request, if an SDK sent it that may send it again by itself."""
    batch_id: str | None = None
    custom_id: str | None = None
    line: int | None = None
    """Its place in its batch, from 1 on; null too for one that was tried anew as another job."""
    result_number: int | None = None
    """Which of its batch's lines it was to end, from 1 on: what readers of results go on after."""
    webhook: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """Where its end is told, if the request says so: `url`, `events`, `secret`."""

    model: str
    """As the caller named it."""
    served_model: str | None = None
    provider: str | None = None
    lane: str = Lane.INTERACTIVE.value
    stream: bool = False
    """The caller reads deltas as they come; otherwise they are logged once a second at most."""
    include_usage: bool = False
    background: bool = False
    """Nobody's connection depends on it: it may start over after it has spoken."""
    on_disconnect: str = "continue"
    """`cancel`: it lives only as long as somebody reads it, see `attended_until`."""

    status: str = JobStatus.QUEUED.value
    status_reason: str | None = None
    """Why it waits."""
    attempt: int = 0
    """The fencing token: it only grows, with every claim."""
    forgiven: int = 0
    """Attempts that do not count against `max_attempts`: handed back, or lost among suspects."""
    losses: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """Attempts whose worker was lost."""
    max_attempts: int = 3
    target: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """Whose turn it is of the model and those it falls back to: 0 is the model itself."""
    worker_id: str | None = None
    """Who holds the lease, or held it last when the job has ended."""

    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    run_at: int | None = Field(default=None, sa_type=BigInteger)
    """Not before; null is at once."""
    hinted_at: int | None = Field(default=None, sa_type=BigInteger)
    """When the last hint was sent; null: it waits for its turn."""
    expires_at: int | None = Field(default=None, sa_type=BigInteger)
    """Past this it may no longer start."""
    stop_at: int | None = Field(default=None, sa_type=BigInteger)
    """Past this it is stopped, wherever it is."""
    attended_until: int | None = Field(default=None, sa_type=BigInteger)
    """Cancelled after this unless a reader's process moves it on; null: goes on unattended."""
    cancel_requested_at: int | None = Field(default=None, sa_type=BigInteger)
    started_at: int | None = Field(default=None, sa_type=BigInteger)
    first_delta_at: int | None = Field(default=None, sa_type=BigInteger)
    completed_at: int | None = Field(default=None, sa_type=BigInteger)
    """When it ended, however it ended."""
    content_deleted_at: int | None = Field(default=None, sa_type=BigInteger)
    """When retention took away what was asked and said."""

    held: int | None = Field(default=None, sa_type=BigInteger)
    """Nano-credits set aside while it has not ended; null: it is free."""
    hold_due: int | None = Field(default=None, sa_type=BigInteger)
    """Nano-credits to set aside before it may start; null: none, or they are `held`."""
    prices: dict[str, list[str]] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """What each model it may be answered by costs, as of when it was accepted."""
    cost: int | None = Field(default=None, sa_type=BigInteger)
    """Nano-credits that were charged."""
    unpaid: int | None = Field(default=None, sa_type=BigInteger)
    """Nano-credits that it cost beyond that: the account had no more. Null: none."""
    cost_estimated: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    """The upstream did not count; we did."""

    deltas: int = 0
    characters: int = 0
    last_seq: int = 0
    usage: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    error: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """A `shared.errors.Fault`."""
    warnings: list[dict[str, Any]] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """What the model that answered was not asked, by `drop_unsupported`: `code`, `param`,
    `message`. Null: nothing was left out."""
    job_metadata: dict[str, str] | None = Field(
        default=None, sa_type=JSON(none_as_null=True), sa_column_kwargs={"name": "metadata"}
    )


class JobContent(SQLModel, table=True):
    """What was asked and what was said; apart, so that lists of jobs stay narrow."""

    __tablename__ = "job_contents"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", ondelete="CASCADE")
    request: bytes = Field(sa_type=LargeBinary)
    """The body for the upstream, JSON."""
    response: bytes | None = Field(default=None, sa_type=LargeBinary)
    """The `chat.completion`, JSON; partial when the job did not complete."""
    log: bytes | None = Field(default=None, sa_type=LargeBinary)
    """The last attempt's deltas: JSON lines, packed by `shared.streams`."""
    log_first_seq: int = 1


class JobMetadata(SQLModel, table=True):
    """One pair of a job's metadata, so that lists can be filtered by it."""

    __tablename__ = "job_metadata"
    __table_args__ = (Index("ix_job_metadata_pair", "account_id", "key", "value", "job_id"),)

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", ondelete="CASCADE")
    key: str = Field(primary_key=True)
    value: str = Field(sa_type=Text)
    account_id: str


class Attempt(SQLModel, table=True):
    """One worker's try at a job."""

    __tablename__ = "attempts"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", ondelete="CASCADE")
    number: int = Field(primary_key=True)
    worker_id: str
    provider: str | None = None
    model: str | None = None
    """The model of the catalogue that was called."""
    upstream_status: int | None = None
    """The HTTP status of the upstream's answer."""
    started_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    first_delta_at: int | None = Field(default=None, sa_type=BigInteger)
    ended_at: int | None = Field(default=None, sa_type=BigInteger)
    outcome: str | None = None
    """`completed`, `failed`, `cancelled`, `retry`, `fell_back`, `handed_back`, `lost` or `late`."""
    error: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    usage: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    cost: int | None = Field(default=None, sa_type=BigInteger)
    """Nano-credits that what the upstream counted comes to, whoever paid; null: it did not count,
    or is free."""


class IdempotencyKey(SQLModel, table=True):
    """A caller's own name for a request: sent again, it leads to the same jobs."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created", "created_at"),)

    account_id: str = Field(primary_key=True, foreign_key="accounts.id")
    scope: str = Field(primary_key=True)
    """Method and path, as in `POST /v1/jobs`."""
    key: str = Field(primary_key=True)
    fingerprint: bytes = Field(sa_type=LargeBinary)
    """SHA-256 of the request's canonical JSON."""
    job_ids: list[str] = Field(sa_type=JSON)
    """What the request became."""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
