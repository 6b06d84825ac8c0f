"""`sluice keys`: mint, list, limit, rotate and revoke API keys, straight in the database."""

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.credits import amount
from cli.failure import USAGE, Failure
from cli.options import AsJson, Concurrency, RequestsPerMinute, TokensPerMinute, limits_of

if TYPE_CHECKING:
    from shared.keys import Terms
    from shared.tables import ApiKey

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SCOPES = ("completions", "admin")
PERIODS = ("day", "month", "none")

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model it may ask for, or a pattern: openrouter/*. Repeatable."),
]
CreditLimit = Annotated[
    str | None, typer.Option(help="Credits it may spend by itself; 'none' takes the limit away.")
]
CreditPeriod = Annotated[
    str | None, typer.Option(help="In each day or month (UTC); 'none': in its whole life.")
]
ExpiresIn = Annotated[str | None, typer.Option(help="30m, 12h, 30d, 8w; else never.")]


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
    scope: Annotated[
        list[str] | None, typer.Option(help="completions (unless given) or admin. Repeatable.")
    ] = None,
    model: Models = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    credit_limit: CreditLimit = None,
    credit_period: CreditPeriod = None,
    expires_in: ExpiresIn = None,
    as_json: AsJson = False,
) -> None:
    """Create a key. Its text is shown once, on stdout, and kept nowhere.

    Example: `sluice keys create --account acme --credits 1000 --expires-in 30d`
    """
    from cli.database import administration
    from shared.administration import create_key, grant
    from shared.prices import NANO

    terms = _terms(model, credit_limit, credit_period, expires_in)
    limits = limits_of(
        None,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
    )
    terms |= {"name": name, "limits": limits}
    if scope:
        terms["scopes"] = [_one_of(SCOPES, "scope", word) for word in dict.fromkeys(scope)]
    with administration() as (session, actor):
        key, text = create_key(session, actor, account=account, **terms)
        if credits:
            grant(session, actor, key.account_id, credits * NANO, note="sluice keys create")
    _show_new(key, account, text, as_json)


def list_all(
    account: Annotated[str | None, typer.Option(help="Only this account's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List keys: whose, since when, until when.

    Example: `sluice keys list --account acme`
    """
    from cli.database import administration
    from shared import keys
    from shared.tables import Account

    with administration() as (session, _):
        rows = [
            _as_object(key, session.get_one(Account, key.account_id).name)
            for key in keys.list_keys(session, account=account)
        ]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _show(rows)


def limit(
    key_id: KeyId,
    model: Models = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    credit_limit: CreditLimit = None,
    credit_period: CreditPeriod = None,
    expires_in: ExpiresIn = None,
) -> None:
    """Change what a key may do; what is not given stays, 0 takes a limit away.

    Example: `sluice keys limit key_01jd3n6y8t7zs9x5w2v4b1c0ae --credit-limit 9.5`
    """
    from cli.database import administration
    from shared import keys
    from shared.administration import change_key

    terms = _terms(model, credit_limit, credit_period, expires_in)
    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    with administration() as (session, actor):
        if any(each is not None for each in given.values()):
            terms["limits"] = limits_of(keys.find(session, key_id).limits, **given)
        change_key(session, actor, key_id, **terms)
    typer.echo(f"{key_id} is changed.")


def rotate(
    key_id: KeyId,
    overlap: Annotated[str | None, typer.Option(help="The old one goes on so long: 12h.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a successor on the same terms, and end the key.

    Example: `sluice keys rotate key_01jd3n6y8t7zs9x5w2v4b1c0ae --overlap 12h`
    """
    from cli.database import administration
    from shared.administration import rotate_key
    from shared.tables import Account

    overlap_ms = span(overlap) // timedelta(milliseconds=1) if overlap else 0
    with administration() as (session, actor):
        key, text = rotate_key(session, actor, key_id, overlap_ms=overlap_ms)
        account = session.get_one(Account, key.account_id).name
    _show_new(key, account, text, as_json)


def revoke(key_id: KeyId) -> None:
    """End a key now and for good.

    Example: `sluice keys revoke key_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    from cli.database import administration
    from shared.administration import revoke_key

    with administration() as (session, actor):
        revoke_key(session, actor, key_id)
    typer.echo(f"{key_id} is revoked.")


def _terms(
    models: list[str] | None,
    credit_limit: str | None,
    credit_period: str | None,
    expires_in: str | None,
) -> "Terms":
    """Of these terms, those that were given."""
    from shared import clock

    terms: Terms = {}
    if models:
        terms["models"] = models
    if credit_limit is not None:
        terms["credit_limit"] = None if credit_limit == "none" else amount(credit_limit)
    if credit_period is not None:
        period = _one_of(PERIODS, "period", credit_period)
        terms["credit_period"] = None if period == "none" else period
    if expires_in is not None:
        terms["expires_at"] = clock.now() + span(expires_in) // timedelta(milliseconds=1)
    return terms


def _one_of(words: tuple[str, ...], what: str, word: str) -> str:
    if word not in words:
        raise Failure(f"{word!r} is no {what}: write {' or '.join(words)}.", code=USAGE)
    return word


def _show_new(key: "ApiKey", account: str, text: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_as_object(key, account) | {"api_key": text}))
    else:
        typer.echo(f"{key.id} for account {account}; this is its only showing:", err=True)
        typer.echo(text)


def _as_object(key: "ApiKey", account: str) -> dict[str, Any]:
    from shared import clock
    from shared.prices import shown

    return {
        "id": key.id,
        "account": account,
        "name": key.name,
        "public_id": key.public_id,
        "scopes": key.scopes,
        "models": key.models,
        "limits": key.limits,
        "credit_limit": None if key.credit_limit is None else shown(key.credit_limit),
        "credit_period": key.credit_period,
        "created_at": clock.seconds(key.created_at),
        "expires_at": clock.seconds(key.expires_at),
        "revoked_at": clock.seconds(key.revoked_at),
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from cli.screen import moment, print_table

    print_table(
        ("key", "account", "name", "scopes", "created", "expires", "revoked"),
        [
            (
                row["id"],
                row["account"],
                row["name"] or "",
                " ".join(row["scopes"]),
                moment(row["created_at"]),
                moment(row["expires_at"]),
                moment(row["revoked_at"]),
            )
            for row in rows
        ],
    )
