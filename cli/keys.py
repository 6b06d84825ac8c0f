"""`sluice keys`: mint, list and revoke API keys, straight in the database."""

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failure import FAILED, USAGE, Failure
from cli.options import AsJson

if TYPE_CHECKING:
    from shared.tables import ApiKey

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def span(text: str) -> timedelta:
    """`30m`, `12h`, `30d` or `8w` as a span. Raises `Failure`."""
    match = re.fullmatch(r"([1-9]\d{0,4})([mhdw])", text)
    if match is None:
        raise Failure(f"{text!r} is no span of time: write 30m, 12h, 30d or 8w.", code=USAGE)
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def create(
    account: Annotated[str, typer.Option(help="Whose key it is; made if there is none.")],
    credits: Annotated[int, typer.Option(min=0, help="Grant the account this many.")] = 0,
    name: Annotated[str | None, typer.Option(help="What you will know the key by.")] = None,
    expires_in: Annotated[str | None, typer.Option(help="30m, 12h, 30d, 8w; else never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key. Its text is shown once, on stdout, and kept nowhere.

    Example: `sluice keys create --account acme --credits 1000 --expires-in 30d`
    """
    from cli import configuration
    from cli.database import transaction
    from shared import clock, keys, ledger
    from shared.prices import NANO
    from shared.settings import StoreSettings

    life = span(expires_in) if expires_in else None
    expires_at = clock.now() + life // timedelta(milliseconds=1) if life else None
    with transaction(configuration.read(StoreSettings)) as session:
        key, text = keys.create(session, account=account, name=name, expires_at=expires_at)
        if credits:
            ledger.grant(session, key.account_id, credits * NANO, note="sluice keys create")
    if as_json:
        typer.echo(json.dumps(_as_object(key, account) | {"api_key": text}))
    else:
        typer.echo(f"{key.id} for account {account}; this is its only showing:", err=True)
        typer.echo(text)


def list_all(
    account: Annotated[str | None, typer.Option(help="Only this account's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List keys: whose, since when, until when.

    Example: `sluice keys list --account acme`
    """
    from cli import configuration
    from cli.database import transaction
    from shared import keys
    from shared.settings import StoreSettings
    from shared.tables import Account

    with transaction(configuration.read(StoreSettings)) as session:
        rows = [
            _as_object(key, session.get_one(Account, key.account_id).name)
            for key in keys.list_keys(session, account=account)
        ]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _show(rows)


def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY_ID")]) -> None:
    """End a key now and for good.

    Example: `sluice keys revoke key_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    from cli import configuration
    from cli.database import transaction
    from shared import keys
    from shared.errors import NotFound
    from shared.settings import StoreSettings

    with transaction(configuration.read(StoreSettings)) as session:
        try:
            keys.revoke(session, key_id)
        except NotFound as error:
            raise Failure(error.message, code=FAILED) from None
    typer.echo(f"{key_id} is revoked.")


def _as_object(key: "ApiKey", account: str) -> dict[str, Any]:
    from shared import clock

    return {
        "id": key.id,
        "account": account,
        "name": key.name,
        "public_id": key.public_id,
        "created_at": clock.seconds(key.created_at),
        "expires_at": clock.seconds(key.expires_at),
        "revoked_at": clock.seconds(key.revoked_at),
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from cli.screen import moment, print_table

    print_table(
        ("key", "account", "name", "created", "expires", "revoked"),
        [
            (
                row["id"],
                row["account"],
                row["name"] or "",
                moment(row["created_at"]),
                moment(row["expires_at"]),
                moment(row["revoked_at"]),
            )
            for row in rows
        ],
    )
