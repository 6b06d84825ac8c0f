"""What an administrator sends and sees: accounts, keys, grants, the audit log."""

from typing import Annotated, Any, Literal, TypeVar, cast

from fastapi import Request
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from api.parse import parse_json, validate
from api.wire.shapes import Closed, ModelName, UnixSeconds, without_nul
from shared import clock
from shared.administration import nano_credits
from shared.keys import COMPLETIONS, Scope, Terms
from shared.limits import AccountLimits, Limits
from shared.prices import NANO
from shared.tables import Account, ApiKey, AuditEntry

LONGEST_OVERLAP = 30 * 24 * 3600
"""Seconds a rotated key may go on beside its successor."""


def _nano(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PydanticCustomError("credits", "should be a number of credits")
    try:
        return nano_credits(value)
    except ValueError as error:
        raise PydanticCustomError("credits", "{said}", {"said": str(error)}) from None


def _pattern(name: str) -> str:
    if "*" in name[:-1]:
        raise PydanticCustomError("pattern", "should be a model's name, or end with its only '*'")
    return name


def _each_once(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("once", "should name each once")
    return values


Credits = Annotated[int, BeforeValidator(_nano), WithJsonSchema({"type": ["number", "string"]})]
"""Credits on the wire, exact to nine places; nano-credits here."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), without_nul]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=2), AfterValidator(_each_once)]
Pattern = Annotated[ModelName, AfterValidator(_pattern)]


class StrictLimits(Limits):
    """Limits, where `"60"` is no number."""

    model_config = ConfigDict(strict=True)


class StrictAccountLimits(AccountLimits):
    """An account's, where `"60"` is no number."""

    model_config = ConfigDict(strict=True)


def plain(limits: Limits | None) -> dict[str, int] | None:
    """As they are stored: none of them is nothing."""
    return limits.model_dump(exclude_none=True) or None if limits else None


class AccountCreate(Closed):
    """A new account."""

    name: Name
    limits: StrictAccountLimits | None = None


class AccountChange(Closed):
    """What of an account can be changed; null takes its limits away."""

    limits: StrictAccountLimits | None


class KeyChange(Closed):
    """Terms of a key. What is not sent stays as it is; null takes a restriction away."""

    name: Name | None = None
    scopes: Scopes = Field(default=[COMPLETIONS])
    models: Annotated[list[Pattern], Field(min_length=1, max_length=1_000)] | None = None
    """Names, aliases and patterns such as `openrouter/*`."""
    limits: StrictLimits | None = None
    credit_limit: Annotated[Credits, Field(ge=0)] | None = None
    credit_period: Literal["day", "month"] | None = None
    expires_at: UnixSeconds | None = None

    @property
    def terms(self) -> Terms:
        """Only what was sent, in the units of the table."""
        sent: dict[str, Any] = self.model_dump(exclude_unset=True, exclude={"account_id"})
        if "limits" in sent:
            sent["limits"] = plain(self.limits)
        if "expires_at" in sent:
            sent["expires_at"] = clock.milliseconds(sent["expires_at"])
        return cast(Terms, sent)


class KeyCreate(KeyChange):
    """A new key of an account."""

    account_id: str


class KeyRotate(Closed):
    """How a key gives way to its successor."""

    overlap: Annotated[int, Field(ge=0, le=LONGEST_OVERLAP)] = 0
    """Seconds for which both are good."""


class CreditGrant(Closed):
    """Credits for an account; negative ones are taken from it."""

    account_id: str
    credits: Credits
    note: Annotated[str, StringConstraints(max_length=500), without_nul] = ""
    reference: (
        Annotated[str, StringConstraints(min_length=1, max_length=255), without_nul] | None
    ) = None
    """Your own name for it: sent again, it does not count again."""


class Page(BaseModel):
    """The query of a list, newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    """The id of the last of the page before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class KeyPage(Page):
    """The query of the list of keys."""

    account_id: str | None = None


class AccountQuery(BaseModel):
    """The query for one account's credits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    account_id: str


class EntryPage(Page, AccountQuery):
    """The query of one account's ledger."""


Shape = TypeVar("Shape", bound=Closed)


async def read_body(shape: type[Shape], request: Request) -> Shape:
    """A body of this shape; nothing is as good as `{}`. Raises `InvalidRequest`."""
    body, content_type = await request.body(), request.headers.get("content-type")
    return validate(shape, parse_json(body, content_type=content_type) if body else {})


def account_object(account: Account) -> dict[str, Any]:
    """An account as its administrator sees it."""
    return {
        "id": account.id,
        "object": "account",
        "name": account.name,
        "limits": account.limits,
        "remaining_credits": account.credits / NANO,
        "held_credits": account.held / NANO,
        "created_at": clock.seconds(account.created_at),
        "disabled_at": clock.seconds(account.disabled_at),
    }


def key_object(key: ApiKey, *, text: str | None = None) -> dict[str, Any]:
    """A key, with its text when it has just been made."""
    limit = key.credit_limit
    shown = {
        "id": key.id,
        "object": "api_key",
        "account_id": key.account_id,
        "name": key.name,
        "public_id": key.public_id,
        "scopes": key.scopes,
        "models": key.models,
        "limits": key.limits,
        "credit_limit": None if limit is None else limit / NANO,
        "credit_period": key.credit_period,
        "spent_credits": None if limit is None else key.spent / NANO,
        "created_at": clock.seconds(key.created_at),
        "expires_at": clock.seconds(key.expires_at),
        "revoked_at": clock.seconds(key.revoked_at),
    }
    return shown if text is None else {**shown, "api_key": text}


def audit_object(entry: AuditEntry) -> dict[str, Any]:
    """What somebody did."""
    return {
        "id": entry.id,
        "object": "audit_entry",
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "details": entry.details,
        "created_at": clock.seconds(entry.created_at),
    }
