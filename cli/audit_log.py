"""`sluice audit-log`: what administrators did, straight from the database."""

import json
from typing import Annotated

import typer

from cli.options import AsJson


def audit_log(
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest entries.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who changed which account, key or balance, newest first.

    Example: `sluice audit-log --limit 20`
    """
    from cli.database import administration
    from cli.screen import moment, print_table
    from shared import clock, trail

    with administration() as (session, _):
        rows, _more = trail.entries(session, after=None, limit=limit)
    told = [{**row.model_dump(), "created_at": clock.seconds(row.created_at)} for row in rows]
    if as_json:
        typer.echo(json.dumps(told))
        return
    print_table(
        ("when", "who", "what", "whose", "details"),
        [
            (
                moment(row["created_at"]),
                row["actor"],
                row["action"],
                row["subject"],
                json.dumps(row["details"]) if row["details"] else "",
            )
            for row in told
        ],
    )
