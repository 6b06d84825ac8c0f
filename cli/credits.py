"""`sluice credits`: grant credits and read an account's books, straight in the database."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.accounts import Named
from cli.failure import USAGE, Failure
from cli.options import AsJson

if TYPE_CHECKING:
    from shared.tables import LedgerEntry


def grant(
    account: Named,
    credits: Annotated[str, typer.Argument(help="How many; after `--` also negative.")],
    note: Annotated[str, typer.Option(help="What for; its owner sees it.")] = "",
    reference: Annotated[
        str | None, typer.Option(help="Your own name for it: a second time it does not count.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give an account credits, or take some from it, down to zero.

    Example: `sluice credits grant acme 1000 --note "Invoice 7" --reference inv-7`
    """
    from cli.database import administration
    from shared import accounts
    from shared import administration as administrator

    nano = amount(credits)
    with administration() as (session, actor):
        found = accounts.named(session, account)
        administrator.grant(session, actor, found.id, nano, note=note, reference=reference)
        session.refresh(found)
    _show_balance(account, found.credits, found.held, as_json)


def balance(account: Named, as_json: AsJson = False) -> None:
    """Show what an account can spend, and what is set aside for its jobs.

    Example: `sluice credits balance acme`
    """
    from cli.database import administration
    from shared import accounts

    with administration() as (session, _):
        found = accounts.named(session, account)
    _show_balance(account, found.credits, found.held, as_json)


def ledger(
    account: Named,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest entries.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show every movement of an account's credits, newest first.

    Example: `sluice credits ledger acme --limit 20`
    """
    from cli.database import administration
    from cli.screen import moment, print_table
    from shared import accounts, clock, statements
    from shared.prices import shown

    with administration() as (session, _):
        found = accounts.named(session, account)
        rows, _more = statements.entries(session, found.id, after=None, limit=limit)
    if as_json:
        typer.echo(json.dumps([_as_object(row) for row in rows]))
        return
    print_table(
        ("when", "kind", "credits", "job", "note"),
        [
            (
                moment(clock.seconds(row.created_at)),
                row.kind,
                shown(row.credits),
                row.job_id or "",
                row.note,
            )
            for row in rows
        ],
    )


def losses(
    days: Annotated[int, typer.Option(min=1, help="Of jobs that ended in so many days.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Show what upstreams counted and no account paid for, by model and what became of the attempt.

    Example: `sluice credits losses --days 7`
    """
    from cli.database import administration
    from cli.screen import print_table
    from shared import clock, statements
    from shared.prices import shown

    with administration() as (session, _):
        found = statements.losses(session, since=clock.now() - days * statements.DAY)
    rows = [(each.model, each.outcome, str(each.times), shown(each.credits)) for each in found]
    names = ("model", "outcome", "times", "credits")
    if as_json:
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    print_table(names, rows)


def amount(text: str) -> int:
    """Credits as somebody typed them, in nano-credits. Raises `Failure`."""
    from shared.administration import nano_credits

    try:
        return nano_credits(text)
    except ValueError as error:
        raise Failure(f"{text!r} {error}.", code=USAGE) from None


def _show_balance(account: str, available: int, held: int, as_json: bool) -> None:
    from shared.prices import shown

    if as_json:
        typer.echo(json.dumps({"credits": shown(available), "held": shown(held)}))
    else:
        typer.echo(f"{account} can spend {shown(available)} credits; {shown(held)} are set aside.")


def _as_object(entry: "LedgerEntry") -> dict[str, Any]:
    from shared import clock
    from shared.prices import shown

    return {
        "created_at": clock.seconds(entry.created_at),
        "kind": entry.kind,
        "credits": shown(entry.credits),
        "job_id": entry.job_id,
        "note": entry.note,
    }
