"""Accounts, their keys, their money, and who changed what."""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel

from shared import clock, ids


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
