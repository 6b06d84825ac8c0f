"""`sluice batch`: look at batches, steer them, and print their results."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.batch_run import Lines, Priority
from cli.options import DEFAULT_HOME, ApiKey, AsJson, Home, Url

BATCHES = "/v1/batches"
BatchId = Annotated[str, typer.Argument(metavar="BATCH_ID")]


def list_all(
    status: Annotated[
        str | None, typer.Option(help="Only these: in_progress, completed, …")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """List your batches, newest first. In a pipe: one tab-separated line each.

    Example: `sluice batch list --status in_progress`
    """
    from cli.client import Address, call
    from cli.screen import moment, print_table

    query = {"limit": limit, **({"status": status} if status else {})}
    with Address.find(url, api_key, home).connect() as client:
        listing = call(client, "GET", BATCHES, params=query)
    if as_json:
        typer.echo(json.dumps(listing))
        return
    print_table(
        ("batch", "status", "lines", "completed", "failed", "created", "expires", "waits for"),
        [
            (
                batch["id"],
                batch["status"],
                *(str(batch["request_counts"][name]) for name in ("total", "completed", "failed")),
                moment(batch["created_at"]),
                moment(batch["expires_at"]),
                batch["status_reason"] or "",
            )
            for batch in listing["data"]
        ],
    )


def show(
    batch_id: BatchId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show a batch: how far it is, what it waits for, what its lines failed of.

    Example: `sluice batch show batch_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    _ask("GET", batch_id, "", as_json, url, api_key, home)


def cancel(
    batch_id: BatchId,
    grace: Annotated[
        int, typer.Option(min=0, max=3600, help="Seconds for which lines that run may go on.")
    ] = 0,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop a batch. What is done stays done.

    Example: `sluice batch cancel batch_01jd3n6y8t7zs9x5w2v4b1c0ae --grace 60`
    """
    _ask("POST", batch_id, "/cancel", as_json, url, api_key, home, params={"grace": grace})


def pause(
    batch_id: BatchId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Start no more of its lines until it is resumed; its window goes on.

    Example: `sluice batch pause batch_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    _ask("POST", batch_id, "/pause", as_json, url, api_key, home)


def resume(
    batch_id: BatchId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Go on with a batch after a pause.

    Example: `sluice batch resume batch_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    _ask("POST", batch_id, "/resume", as_json, url, api_key, home)


def retry(
    batch_id: BatchId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Try what did not complete anew, once the batch has ended; the rest stays.

    Example: `sluice batch retry batch_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    _ask("POST", batch_id, "/retry", as_json, url, api_key, home)


def change(
    batch_id: BatchId,
    priority: Priority = None,
    concurrency: Lines = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Change a batch, also while it runs.

    Example: `sluice batch change batch_01jd3n6y8t7zs9x5w2v4b1c0ae --priority 9`
    """
    given = {"priority": priority, "concurrency": concurrency}
    body = {name: value for name, value in given.items() if value is not None}
    _ask("PATCH", batch_id, "", as_json, url, api_key, home, json=body)


def results(
    batch_id: BatchId,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the batch has ended.")
    ] = False,
    status: Annotated[
        list[str] | None, typer.Option(help="Only completed, failed, … lines. Repeatable.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the results there are, in the order in which they ended.

    Example: `sluice batch results batch_01jd3n6y8t7zs9x5w2v4b1c0ae --status failed`
    """
    from cli.batch_following import pages, told
    from cli.client import Address, call

    with Address.find(url, api_key, home).connect() as client:
        looks = told(client, batch_id) if follow else [call(client, "GET", _path(batch_id))]
        seen = 0
        for batch in looks:
            until = batch["last_result"]
            for page, cursor in pages(client, batch_id, seen, until, status or ()):
                sys.stdout.buffer.write(page)
                sys.stdout.buffer.flush()
                seen = cursor


def _ask(
    method: str,
    batch_id: str,
    verb: str,
    as_json: bool,
    url: str | None,
    api_key: str | None,
    home: Path,
    **options: Any,
) -> None:
    """Send a request, and show the batch that it answers with."""
    from cli.batch_screen import summary
    from cli.client import Address, call

    with Address.find(url, api_key, home).connect() as client:
        batch = call(client, method, f"{_path(batch_id)}{verb}", **options)
    typer.echo(json.dumps(batch) if as_json else summary(batch))


def _path(batch_id: str) -> str:
    return f"{BATCHES}/{batch_id}"
