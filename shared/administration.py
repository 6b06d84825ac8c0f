"""What an administrator does: to accounts, keys and credits, each with its entry in the audit log.

`actor` is who does it: a key's id, the account of a token, or `cli:` and a user's name.
"""

import hashlib
import re
from decimal import Decimal
from typing import Any, Final, Unpack

from sqlmodel import Session, col, select

from shared import accounts, clock, keys, ledger, trail
from shared.errors import IdempotencyKeyReused, InvalidRequest
from shared.keys import Terms
from shared.prices import NANO, shown
from shared.tables import Account, ApiKey, AuditEntry, LedgerEntry

MOST: Final = 9 * 10**9 * NANO
"""Nano-credits an account can have: what fits a BIGINT."""
LARGEST: Final = 10**9 * NANO
"""Nano-credits of one grant, or of a key's limit."""
_AMOUNT: Final = re.compile(r"-?[0-9]{1,10}(\.[0-9]{1,18})?")


def nano_credits(amount: int | float | str) -> int:
    """An amount of credits as a person or JSON writes it, exactly. Raises `ValueError`."""
    if isinstance(amount, str) and not _AMOUNT.fullmatch(amount):
        raise ValueError("should be a number of credits, such as 1000 or '0.5'")
    if isinstance(amount, float) and not amount.is_integer() and abs(amount) * NANO >= 2**53:
        raise ValueError("should be a string, which alone keeps so many digits")
    nano = Decimal(str(amount)) * NANO
    if nano != nano.to_integral_value():
        raise ValueError("should have at most nine digits after the point")
    if abs(nano) > LARGEST:
        raise ValueError(f"should be {shown(LARGEST)} at most")
    return int(nano)


def create_account(
    session: Session, actor: str, *, name: str, limits: dict[str, int] | None = None
) -> Account:
    """A new account. Raises `InvalidRequest` when there is one of that name."""
    account = accounts.create(session, name, limits=limits)
    details = {"name": name, "limits": account.limits}
    trail.record(session, actor, "accounts.create", account.id, details)
    return account


def limit_account(
    session: Session, actor: str, account_id: str, limits: dict[str, int] | None
) -> Account:
    """Set what all its keys and tokens together may ask for. Raises `NotFound`."""
    account = accounts.limit(session, account_id, limits)
    trail.record(session, actor, "accounts.limit", account.id, {"limits": account.limits})
    return account


def disable_account(session: Session, actor: str, account_id: str) -> Account:
    """Refuse its keys and tokens from now on; its jobs go on. Raises `NotFound`."""
    account = accounts.disable(session, account_id)
    trail.record(session, actor, "accounts.disable", account.id)
    return account


def enable_account(session: Session, actor: str, account_id: str) -> Account:
    """Accept its keys and tokens again. Raises `NotFound`."""
    account = accounts.enable(session, account_id)
    trail.record(session, actor, "accounts.enable", account.id)
    return account


def create_key(
    session: Session, actor: str, *, account: str, **terms: Unpack[Terms]
) -> tuple[ApiKey, str]:
    """Mint a key for the account of that name, made if there is none; and the key's text."""
    key, text = keys.create(session, account=account, **terms)
    trail.record(
        session, actor, "keys.create", key.id, {"account_id": key.account_id, **_told(terms)}
    )
    return key, text


def change_key(session: Session, actor: str, key_id: str, **terms: Unpack[Terms]) -> ApiKey:
    """Change these terms of a key and no others. Raises `NotFound`."""
    key = keys.change(session, key_id, **terms)
    trail.record(session, actor, "keys.change", key.id, _told(terms))
    return key


def rotate_key(
    session: Session, actor: str, key_id: str, *, overlap_ms: int = 0
) -> tuple[ApiKey, str]:
    """A successor on the same terms, and its text; the key ends after `overlap_ms`.

    Raises `NotFound`, and `InvalidRequest` when the key has ended already.
    """
    key, text = keys.rotate(session, key_id, overlap_ms=overlap_ms)
    details = {"successor": key.id, "overlap_seconds": overlap_ms // 1000}
    trail.record(session, actor, "keys.rotate", key_id, details)
    return key, text


def revoke_key(session: Session, actor: str, key_id: str) -> ApiKey:
    """End a key now and for good. Raises `NotFound`."""
    key = keys.revoke(session, key_id)
    trail.record(session, actor, "keys.revoke", key.id)
    return key


def grant(
    session: Session,
    actor: str,
    account_id: str,
    nano: int,
    *,
    note: str = "",
    reference: str | None = None,
) -> LedgerEntry:
    """Give an account `nano` nano-credits, or take what is negative, down to zero.

    With a `reference` it takes place once in an account, however often it is asked for. Raises
    `NotFound`, `InvalidRequest` for more than the account has, or can have, and
    `IdempotencyKeyReused` for a reference that came with another grant.
    """
    accounts.find(session, account_id)
    locked = select(Account).where(col(Account.id) == account_id).with_for_update()
    account = session.exec(locked, execution_options={"populate_existing": True}).one()
    asked = {"credits": shown(nano), "note": note}
    entry_id = reference and _once(account_id, reference)
    known = session.get(AuditEntry, entry_id) if entry_id else None
    if known is not None:
        return _granted_before(session, known, asked)
    if account.credits + nano < 0:
        said = f"The account has {shown(account.credits)} credits that can be taken."
        raise InvalidRequest(said, param="credits")
    if account.credits + account.held + nano > MOST:
        raise InvalidRequest(f"An account can have {shown(MOST)} credits.", param="credits")
    entry = ledger.grant(session, account_id, nano, note=note)
    done = trail.record(
        session,
        actor,
        "credits.grant",
        account_id,
        {**asked, "reference": reference, "entry": entry.id},
    )
    if entry_id:
        done.id = entry_id  # which exists once, by the database's own word
    return entry


def _granted_before(session: Session, known: AuditEntry, asked: dict[str, str]) -> LedgerEntry:
    if {name: known.details[name] for name in asked} != asked:
        raise IdempotencyKeyReused(
            "This reference came before, with another grant.", param="reference"
        )
    return session.get_one(LedgerEntry, known.details["entry"])


def _once(account_id: str, reference: str) -> str:
    return hashlib.sha256(f"{account_id} {reference}".encode()).hexdigest()


def _told(terms: Terms) -> dict[str, Any]:
    """Terms as the log has them: in the units that people use."""
    told: dict[str, Any] = dict(terms)
    if (limit := terms.get("credit_limit")) is not None:
        told["credit_limit"] = shown(limit)
    if (expires_at := terms.get("expires_at")) is not None:
        told["expires_at"] = clock.seconds(expires_at)
    return told
