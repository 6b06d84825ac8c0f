"""`sluice batch run`: a file of lines in, a file of results out, whatever breaks in between."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.failure import FAILED, INTERRUPTED, USAGE, Failure
from cli.options import DEFAULT_HOME, ApiKey, AsJson, Home, Url
from cli.screen import note

Window = Annotated[str | None, typer.Option(help="In which it is done: 1m to 30d; else 24h.")]
Priority = Annotated[
    int | None, typer.Option(min=0, max=9, help="Of your own batches the higher go first.")
]
Lines = Annotated[
    int | None, typer.Option("--concurrency", min=1, help="Lines that may run at once.")
]


def run(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="Lines as OpenAI has them.", exists=True, dir_okay=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where results go; else in.results.jsonl, for in.jsonl.")
    ] = None,
    window: Window = None,
    priority: Priority = None,
    concurrency: Lines = None,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE. Repeatable.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print its id and leave it to itself.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the lines, say what they may cost.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew, and write over what is there.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run every line of a file and write the results as they come.

    Whatever stops it, the same command goes on where it was: the batch itself runs without it.
    Fails (exit code 1) when a line does. Example: `sluice batch run in.jsonl --out results.jsonl`
    """
    from cli.batch_begin import begin, estimate
    from cli.batch_following import collect
    from cli.batch_output import opened
    from cli.client import Address

    asked = {
        "completion_window": window,
        "priority": priority,
        "concurrency": concurrency,
        "metadata": dict(map(_pair, metadata or [])) or None,
    }
    terms = {name: value for name, value in asked.items() if value is not None}
    out, batch_id = out or source.with_suffix(".results.jsonl"), ""
    try:
        with Address.find(url, api_key, home).connect() as client:
            if dry_run:
                _show_estimate(estimate(client, source, terms), as_json)
                return
            with opened(out) as output:
                batch_id = begin(client, source, output, terms, force=force)
                if not detach:
                    batch = collect(client, batch_id, output)
    except KeyboardInterrupt:
        goes_on = f"{batch_id} goes on: `sluice batch cancel {batch_id}` stops it. "
        note(f"\n{goes_on if batch_id else ''}The same command goes on where this one was.")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        raise Failure(f"{error.filename or out}: {error.strerror}", code=FAILED) from None
    if detach:
        typer.echo(json.dumps({"id": batch_id}) if as_json else batch_id)
        return
    if as_json:
        typer.echo(json.dumps(batch))
    _conclude(batch)


def _show_estimate(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    tokens = found["tokens"]
    typer.echo(
        f"{found['request_counts']['total']:,} lines, all of them right · "
        f"about {tokens['prompt']:,} tokens in, at most {tokens['most_completion']:,} out · "
        f"at most {found['cost']['most']:g} credits"
    )


def _conclude(batch: dict[str, Any]) -> None:
    """Say how it went. Raises `Failure` unless every line completed."""
    from cli.batch_screen import summary

    counts = batch["counts"]
    if batch["status"] == "completed" and counts["completed"] == counts["total"]:
        note(summary(batch))
        return
    advice = (
        f"\n`sluice batch retry {batch['id']}` tries anew what did not complete; when that has "
        f"ended, `sluice batch results {batch['id']}` prints all of it."
    )
    raise Failure(summary(batch) + (advice if counts["total"] else ""), code=FAILED)


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise Failure(f"{text!r} is no KEY=VALUE.", code=USAGE)
    return name, value
