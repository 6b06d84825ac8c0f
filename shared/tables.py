"""Every row, and what the database promises about it.

Moments (`…_at`, `…_until`) are Unix milliseconds; see `shared.clock` for whose.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel

from shared import clock, ids
from shared.lifecycle import TERMINAL, JobStatus, Lane

_QUEUED = f"status = '{JobStatus.QUEUED}'"
_RUNNING = f"status = '{JobStatus.IN_PROGRESS}'"
_TERMINAL = "status IN ({})".format(", ".join(f"'{status}'" for status in sorted(TERMINAL)))


def _where(name: str, *columns: str, condition: str) -> Index:
    """A partial index: it holds only the rows its one query is about."""
    clause = text(condition)
    return Index(name, *columns, sqlite_where=clause, postgresql_where=clause)


class Account(SQLModel, table=True):
    """Who pays, and whose jobs are whose."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("credits >= 0", name="credits_never_negative"),
        CheckConstraint("held >= 0", name="held_never_negative"),
    )

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    credits: int = Field(default=0, sa_type=BigInteger)
    """What can still be spent, in nano-credits (10^-9 credit)."""
    held: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """What is set aside for jobs that have not ended, in nano-credits."""
    limits: dict[str, int] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """A `shared.limits.Limits`; null is none but the defaults."""
    disabled_at: int | None = Field(default=None, sa_type=BigInteger)
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)


class ApiKey(SQLModel, table=True):
    """A way to authenticate. The secret itself is not here."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    public_id: str = Field(unique=True)
    """The part of the key by which it is found; safe to log."""
    secret_hash: bytes = Field(sa_type=LargeBinary)
    """SHA-256 of the secret part, which has 160 random bits."""
    account_id: str = Field(foreign_key="accounts.id", index=True)
    name: str | None = None
    scopes: list[str] = Field(default_factory=lambda: ["completions"], sa_type=JSON)
    models: list[str] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """The models it may ask for; null is all of them."""
    limits: dict[str, int] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    credit_limit: int | None = Field(default=None, sa_type=BigInteger)
    """Nano-credits it may spend in each `credit_period`; null is no limit of its own."""
    credit_period: str | None = None
    """`day` or `month`, by UTC; null is its whole life."""
    spent: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """Nano-credits held or charged since `spent_since`, if it has a limit."""
    spent_since: int = Field(
        default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"}
    )
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)
    revoked_at: int | None = Field(default=None, sa_type=BigInteger)


class LedgerEntry(SQLModel, table=True):
    """One movement of credits. Only ever added."""

    __tablename__ = "ledger_entries"
    __table_args__ = (UniqueConstraint("job_id", "kind", name="once_per_job_and_kind"),)

    id: str = Field(default_factory=ids.new_id, primary_key=True)
    account_id: str = Field(foreign_key="accounts.id", index=True)
    job_id: str | None = None
    kind: str
    """`grant`, `hold`, `charge` or `release`."""
    credits: int = Field(sa_type=BigInteger)
    """Nano-credits; what leaves the account is negative."""
    note: str = ""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)


class AuditEntry(SQLModel, table=True):
    """Something an administrator did. Only ever added."""

    __tablename__ = "audit_entries"

    id: str = Field(default_factory=ids.new_id, primary_key=True)
    actor: str
    """The key's id, a JWT's account, or `cli:` and the user's name on that machine."""
    action: str
    """As in `accounts.disable`."""
    subject: str
    """The id of what was changed."""
    details: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)


class Worker(SQLModel, table=True):
    """One registration of a worker process, and its lease. Presumed dead once, dead for good."""

    __tablename__ = "workers"
    __table_args__ = (_where("ix_workers_alive", "id", condition="alive"),)

    id: str = Field(primary_key=True)
    host: str
    pid: int
    beats: int = Field(default=0, sa_type=BigInteger)
    """Grows while the process lives; the reaper watches it on a clock of its own."""
    alive: bool = True
    slots: int = 0
    """Jobs it may have in flight."""
    models: list[str] = Field(default_factory=list, sa_type=JSON)
    """What this process can serve: their upstreams' keys are at hand."""
    started_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    ended_at: int | None = Field(default=None, sa_type=BigInteger)


class Leader(SQLModel, table=True):
    """Which process runs the control loops."""

    __tablename__ = "leaders"

    role: str = Field(primary_key=True)
    holder: str
    terms: int = Field(default=0, sa_type=BigInteger)
    """Grows while the holder lives; the others watch it on clocks of their own."""


class Job(SQLModel, table=True):
    """One accepted request. Its status changes only in `jobs.move`."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"({_RUNNING}) <= (worker_id IS NOT NULL)", name="running_is_leased"),
        CheckConstraint(f"({_TERMINAL}) = (completed_at IS NOT NULL)", name="ended_has_a_moment"),
        Index("ix_jobs_account", "account_id", "id"),
        Index("ix_jobs_account_status", "account_id", "status", "id"),
        Index("ix_jobs_account_model", "account_id", "model", "id"),
        Index("ix_jobs_batch", "batch_id", "id"),
        Index(
            "ix_jobs_custom_id",
            *("batch_id", "custom_id"),
            unique=True,
            sqlite_where=text("custom_id IS NOT NULL"),
            postgresql_where=text("custom_id IS NOT NULL"),
        ),
        _where("ix_jobs_queued", "lane", "hinted_at", "run_at", "id", condition=_QUEUED),
        _where("ix_jobs_running", "worker_id", condition=_RUNNING),
        _where("ix_jobs_expiring", "expires_at", condition=f"{_QUEUED} AND expires_at IS NOT NULL"),
        _where(
            "ix_jobs_attended",
            "attended_until",
            condition="attended_until IS NOT NULL AND completed_at IS NULL",
        ),
        _where("ix_jobs_ended", "completed_at", condition="completed_at IS NOT NULL"),
        _where("ix_jobs_lost", "losses", condition="losses > 0 AND completed_at IS NULL"),
        _where(
            "ix_jobs_stopping", "stop_at", condition="stop_at IS NOT NULL AND completed_at IS NULL"
        ),
        _where(
            "ix_jobs_with_content",
            "completed_at",
            condition="completed_at IS NOT NULL AND content_deleted_at IS NULL",
        ),
        _where(
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
    """Its place in its batch, from 1 on."""
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
    """When the last hint was sent; null asks the sweep for one."""
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
    prices: dict[str, list[str]] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """What each model it may be answered by costs, as of when it was accepted."""
    cost: int | None = Field(default=None, sa_type=BigInteger)
    """Nano-credits that were charged."""
    cost_estimated: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    """The upstream did not count; we did."""

    deltas: int = 0
    characters: int = 0
    last_seq: int = 0
    usage: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    error: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """A `shared.errors.Fault`."""
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


class File(SQLModel, table=True):
    """An uploaded file, or one that is rendered from rows; the bytes are elsewhere."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_account", "account_id", "id"),
        _where("ix_files_expiring", "expires_at", condition="expires_at IS NOT NULL"),
    )

    id: str = Field(primary_key=True)
    """`file-` and 26 letters; grows with time."""
    account_id: str = Field(foreign_key="accounts.id")
    filename: str
    purpose: str
    bytes: int = Field(default=0, sa_type=BigInteger)
    lines: int = 0
    """Requests in it, if it is a batch's input."""
    status: str = "uploaded"
    """`uploaded`, `processed` or `error`."""
    status_details: str | None = None
    batch_id: str | None = None
    """The batch whose lines it shows; its bytes are rendered from rows."""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)


class WebhookEndpoint(SQLModel, table=True):
    """Where an account wants to hear of its events."""

    __tablename__ = "webhook_endpoints"

    id: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="accounts.id", index=True)
    url: str
    events: list[str] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """Types, as in `batch.completed`; null is all that are not opt-in."""
    secrets: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    """`{"secret": "whsec_…", "until": milliseconds or null}`, the newest first."""
    description: str = ""
    failing_since: int | None = Field(default=None, sa_type=BigInteger)
    disabled_at: int | None = Field(default=None, sa_type=BigInteger)
    disabled_reason: str | None = None
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)


class Event(SQLModel, table=True):
    """Something that happened, as it is told: the outbox of webhooks. Only ever added."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_account", "account_id", "id"),
        Index("ix_events_created", "created_at"),
    )

    id: str = Field(primary_key=True)
    """`evt_` and 26 letters; grows with time."""
    account_id: str = Field(foreign_key="accounts.id")
    type: str
    subject: str
    """The id of the job or batch."""
    body: bytes = Field(sa_type=LargeBinary)
    """The JSON that is sent, again and again the same."""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)


class Delivery(SQLModel, table=True):
    """One event on its way to one URL."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("ix_deliveries_endpoint", "endpoint_id", "id"),
        Index("ix_deliveries_event", "event_id"),
        _where("ix_deliveries_due", "next_at", condition="status = 'pending'"),
    )

    id: str = Field(primary_key=True)
    event_id: str = Field(foreign_key="events.id", ondelete="CASCADE")
    account_id: str = Field(foreign_key="accounts.id")
    endpoint_id: str | None = None
    """None: the request named the URL itself."""
    url: str
    secret: str | None = None
    """What a request's own webhook is signed with."""
    status: str = "pending"
    """`pending`, `delivered` or `failed`."""
    attempt: int = 0
    """How often it was sent; the fence of whoever sends it."""
    next_at: int | None = Field(default=None, sa_type=BigInteger)
    """When it is sent next, if it is pending."""
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    ended_at: int | None = Field(default=None, sa_type=BigInteger)


class DeliveryAttempt(SQLModel, table=True):
    """One sending of a delivery, and what came back."""

    __tablename__ = "delivery_attempts"

    delivery_id: str = Field(primary_key=True, foreign_key="deliveries.id", ondelete="CASCADE")
    number: int = Field(primary_key=True)
    started_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    milliseconds: int | None = None
    status: int | None = None
    """The HTTP status; None: there was no answer."""
    error: str | None = None


class Batch(SQLModel, table=True):
    """Many requests that belong together. Its counts are those of its lines, which are jobs."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("ix_batches_account", "account_id", "id"),
        _where("ix_batches_open", "id", condition="ended_at IS NULL"),
    )

    id: str = Field(primary_key=True)
    """`batch_` and 26 letters; grows with time."""
    account_id: str = Field(foreign_key="accounts.id")
    key_id: str | None = None
    request_id: str
    endpoint: str
    status: str = "validating"
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    completion_window: str = "24h"
    priority: int = 0
    concurrency: int | None = None
    """Lines that may run at once; null is as many as there is room for."""
    total: int = 0
    """Lines, once all are there."""
    read_lines: int = 0
    """Lines of the input that have become jobs: where to go on after a crash."""
    errors: list[dict[str, Any]] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    webhook: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    batch_metadata: dict[str, str] | None = Field(
        default=None, sa_type=JSON(none_as_null=True), sa_column_kwargs={"name": "metadata"}
    )
    created_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    in_progress_at: int | None = Field(default=None, sa_type=BigInteger)
    paused_at: int | None = Field(default=None, sa_type=BigInteger)
    cancelling_at: int | None = Field(default=None, sa_type=BigInteger)
    finalizing_at: int | None = Field(default=None, sa_type=BigInteger)
    expires_at: int = Field(default=0, sa_type=BigInteger)
    ended_at: int | None = Field(default=None, sa_type=BigInteger)


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
