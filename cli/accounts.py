"""`sluice accounts`: make, list, limit and disable accounts, straight in the database."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import (
    AsJson,
    Concurrency,
    RequestsPerMinute,
    Running,
    TokensPerMinute,
    Weight,
    limits_of,
)

if TYPE_CHECKING:
    from shared.tables import Account

Named = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its name or its id.")]


def create(
    name: Annotated[str, typer.Argument(help="What you will know it by.")],
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    running: Running = None,
    weight: Weight = None,
    as_json: AsJson = False,
) -> None:
    """Make an account. (`sluice keys create` makes it by itself as well.)

    Example: `sluice accounts create acme --requests-per-minute 600`
    """
    from cli.database import administration
    from shared.administration import create_account

    limits = limits_of(
        None,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
        running=running,
        weight=weight,
    )
    with administration() as (session, actor):
        account = create_account(session, actor, name=name, limits=limits)
    _tell(account, f"{account.id} is the account {name}.", as_json)


def list_all(as_json: AsJson = False) -> None:
    """List accounts: their credits and their limits, oldest first.

    Example: `sluice accounts list`
    """
    from cli.database import administration
    from cli.screen import print_table
    from shared import accounts

    with administration() as (session, _):
        rows = [_as_object(account) for account in accounts.list_accounts(session)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    print_table(
        ("account", "name", "credits", "held", "limits", "disabled"),
        [
            (
                row["id"],
                row["name"],
                row["credits"],
                row["held"],
                " ".join(f"{name}={most}" for name, most in (row["limits"] or {}).items()),
                "disabled" if row["disabled_at"] else "",
            )
            for row in rows
        ],
    )


def limit(
    account: Named,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    running: Running = None,
    weight: Weight = None,
    as_json: AsJson = False,
) -> None:
    """Change an account's limits; what is not given stays, 0 takes a limit away.

    Example: `sluice accounts limit acme --tokens-per-minute 200000 --concurrency 20`
    """
    from cli.database import administration
    from shared import accounts
    from shared.administration import limit_account

    with administration() as (session, actor):
        found = accounts.named(session, account)
        limits = limits_of(
            found.limits,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
            running=running,
            weight=weight,
        )
        changed = limit_account(session, actor, found.id, limits)
    _tell(changed, f"{account} has the limits {changed.limits or 'none'}.", as_json)


def disable(account: Named, as_json: AsJson = False) -> None:
    """Refuse an account's keys and tokens from now on; its jobs go on.

    Example: `sluice accounts disable acme`
    """
    from cli.database import administration
    from shared import accounts
    from shared.administration import disable_account

    with administration() as (session, actor):
        done = disable_account(session, actor, accounts.named(session, account).id)
    _tell(done, f"{account} is disabled.", as_json)


def enable(account: Named, as_json: AsJson = False) -> None:
    """Accept an account's keys and tokens again.

    Example: `sluice accounts enable acme`
    """
    from cli.database import administration
    from shared import accounts
    from shared.administration import enable_account

    with administration() as (session, actor):
        done = enable_account(session, actor, accounts.named(session, account).id)
    _tell(done, f"{account} is enabled.", as_json)


def _tell(account: "Account", sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(_as_object(account)) if as_json else sentence)


def _as_object(account: "Account") -> dict[str, Any]:
    from shared import clock
    from shared.prices import shown

    return {
        "id": account.id,
        "name": account.name,
        "credits": shown(account.credits),
        "held": shown(account.held),
        "limits": account.limits,
        "created_at": clock.seconds(account.created_at),
        "disabled_at": clock.seconds(account.disabled_at),
    }
