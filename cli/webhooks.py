"""`sluice webhooks`: register receivers, try them out, and see what became of each delivery."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import DEFAULT_HOME, ApiKey, AsJson, Home, Url

ENDPOINTS = "/v1/webhook_endpoints"
EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT_ID")]
Sender = Annotated[str, typer.Argument(metavar="ENDPOINT_ID|JOB_ID|BATCH_ID")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY_ID")]


def list_all(
    as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, home: Home = DEFAULT_HOME
) -> None:
    """List your endpoints: where they are, what they hear of, whether they answer.

    Example: `sluice webhooks list`
    """
    from cli.client import Address, call
    from cli.screen import moment, print_table

    with Address.find(url, api_key, home).connect() as client:
        listing = call(client, "GET", ENDPOINTS)
    if as_json:
        typer.echo(json.dumps(listing))
        return
    print_table(
        ("endpoint", "url", "events", "state", "failing since"),
        [
            (
                one["id"],
                one["url"],
                _heard(one),
                "enabled" if one["enabled"] else f"disabled: {one['disabled_reason']}",
                moment(one["failing_since"]),
            )
            for one in listing["data"]
        ],
    )


def create(
    receiver: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent.")],
    event: Annotated[
        list[str] | None, typer.Option(help="A type it hears of; else most. Repeatable.")
    ] = None,
    name: Annotated[str, typer.Option(help="What you will know it by.")] = "",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Register an endpoint. Its secret is shown once, on stdout.

    Example: `sluice webhooks create https://example.com/hook --event batch.completed`
    """
    terms = {"url": receiver, "event_types": event or None, "name": name}
    made = _post("", url, api_key, home, json=terms)
    _show_secret(made, as_json)


def rotate(
    endpoint_id: EndpointId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make a new secret, shown once; the old one signs as well for 24 hours.

    Example: `sluice webhooks rotate we_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    _show_secret(_post(f"/{endpoint_id}/rotate_secret", url, api_key, home), as_json)


def delete(
    endpoint_id: EndpointId, url: Url = None, api_key: ApiKey = None, home: Home = DEFAULT_HOME
) -> None:
    """Forget an endpoint; what is on its way there is not sent any more.

    Example: `sluice webhooks delete we_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    from cli.client import Address, call

    with Address.find(url, api_key, home).connect() as client:
        call(client, "DELETE", f"{ENDPOINTS}/{endpoint_id}")
    typer.echo(f"{endpoint_id} is deleted.")


def try_out(
    endpoint_id: EndpointId, url: Url = None, api_key: ApiKey = None, home: Home = DEFAULT_HOME
) -> None:
    """Send an endpoint an event `webhook.test`.

    Example: `sluice webhooks test we_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    delivery = _post(f"/{endpoint_id}/test", url, api_key, home)
    typer.echo(f"{delivery['id']} is on its way.")


def change(
    endpoint_id: EndpointId,
    to: Annotated[str | None, typer.Option(metavar="URL", help="Where events are sent.")] = None,
    event: Annotated[
        list[str] | None, typer.Option(help="A type it hears of, of which there may be several.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What you will know it by.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Change where an endpoint is, or what it hears of; what you do not name stays.

    Example: `sluice webhooks change we_01jd3n6y8t7zs9x5w2v4b1c0ae --event batch.completed`
    """
    given = {"url": to, "event_types": event or None, "name": name}
    terms = {field: value for field, value in given.items() if value is not None}
    changed = _post(f"/{endpoint_id}", url, api_key, home, json=terms)
    typer.echo(f"{changed['id']} hears of {_heard(changed)} at {changed['url']}.")


def enable(
    endpoint_id: EndpointId, url: Url = None, api_key: ApiKey = None, home: Home = DEFAULT_HOME
) -> None:
    """Send to an endpoint again, from now on.

    Example: `sluice webhooks enable we_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    _post(f"/{endpoint_id}", url, api_key, home, json={"enabled": True})
    typer.echo(f"{endpoint_id} is enabled.")


def disable(
    endpoint_id: EndpointId, url: Url = None, api_key: ApiKey = None, home: Home = DEFAULT_HOME
) -> None:
    """Send no more to an endpoint, nor what is on its way there, until it is enabled.

    Example: `sluice webhooks disable we_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    _post(f"/{endpoint_id}", url, api_key, home, json={"enabled": False})
    typer.echo(f"{endpoint_id} is disabled.")


def deliveries(
    of: Sender,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """List what was sent to an endpoint, or of a job or a batch, and what came back, newest first.

    Example: `sluice webhooks deliveries we_01jd3n6y8t7zs9x5w2v4b1c0ae --limit 5`
    """
    from cli.client import Address, call
    from cli.screen import moment, print_table

    with Address.find(url, api_key, home).connect() as client:
        kinds = {"we": ENDPOINTS, "batch": "/v1/batches"}
        where = f"{kinds.get(of.split('_')[0], '/v1/jobs')}/{of}/deliveries"
        listing = call(client, "GET", where, params={"limit": limit})
        listing["data"] = listing["data"][:limit]  # of a job there are few, in one page
    if as_json:
        typer.echo(json.dumps(listing))
        return
    print_table(
        ("delivery", "event", "status", "tries", "last answer", "next try"),
        [
            (
                one["id"],
                one["type"],
                one["status"],
                str(len(one["attempts"])),
                _last_answer(one["attempts"]),
                moment(one["next_attempt_at"]),
            )
            for one in listing["data"]
        ],
    )


def redeliver(
    endpoint_id: EndpointId,
    delivery_id: DeliveryId,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Send a delivery's event once more, unchanged.

    Example: `sluice webhooks redeliver we_01jd3n6y8t7z… dlv_01jd3n6y8t7z…`
    """
    again = _post(f"/{endpoint_id}/deliveries/{delivery_id}/redeliver", url, api_key, home)
    typer.echo(f"{again['id']} is on its way.")


def _post(
    path: str, url: str | None, api_key: str | None, home: Path, **options: Any
) -> dict[str, Any]:
    from cli.client import Address, call

    with Address.find(url, api_key, home).connect() as client:
        return call(client, "POST", f"{ENDPOINTS}{path}", **options)


def _show_secret(endpoint: dict[str, Any], as_json: bool) -> None:
    from cli.screen import note

    if as_json:
        typer.echo(json.dumps(endpoint))
        return
    note(f"{endpoint['id']} for {endpoint['url']}. Its secret is shown only now:")
    typer.echo(endpoint["signing_secret"])


def _heard(endpoint: dict[str, Any]) -> str:
    return ", ".join(endpoint["event_types"] or ["all"])


def _last_answer(attempts: list[dict[str, Any]]) -> str:
    if not attempts:
        return ""
    return attempts[-1]["error"] or str(attempts[-1]["status"] or "unknown")
