"""Credits as the wire shows them: numbers of credits, which JSON keeps to the nano-credit."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from api.wire.shapes import UnixSeconds
from shared import clock, ids
from shared.prices import NANO
from shared.statements import Balance, Grouping
from shared.tables import LedgerEntry


class LedgerFilters(BaseModel):
    """The query of the ledger: newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    """The id of the last entry of the page before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def _words(text: object) -> object:
    words = str(text).split(",")
    if len(set(words)) != len(words):
        raise PydanticCustomError("group_by", "should name each group once")
    return words


class UsageFilters(BaseModel):
    """The query of usage: the last thirty days by day, unless told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group_by: Annotated[list[Grouping], BeforeValidator(_words)] = ["day"]
    start_time: UnixSeconds | None = None
    end_time: UnixSeconds | None = None


def balance_object(found: Balance) -> dict[str, Any]:
    """An account's credits."""
    return {
        "object": "credits.balance",
        "remaining_credits": found.available / NANO,
        "held_credits": found.held / NANO,
        "total_credits": (found.available + found.held) / NANO,
    }


def entry_object(entry: LedgerEntry) -> dict[str, Any]:
    """One movement of credits; what leaves the account is negative."""
    return {
        "id": entry.id,
        "object": "credits.entry",
        "kind": entry.kind,
        "credits": entry.credits / NANO,
        "job_id": ids.JOB + entry.job_id if entry.job_id else None,
        "note": entry.note,
        "created_at": clock.seconds(entry.created_at),
    }


def usage_object(row: dict[str, Any]) -> dict[str, Any]:
    """What one group used."""
    tokens = row["prompt_tokens"] + row["completion_tokens"]
    return {**row, "object": "usage", "total_tokens": tokens, "credits": row["credits"] / NANO}
