"""`sluice jobs` and `sluice cancel`: what there is to do, and not to do any more."""

import json
from typing import Annotated, Any

import typer

from cli.failure import FAILED, Failure
from cli.options import DEFAULT_HOME, ApiKey, AsJson, Home, Url


def jobs(
    status: Annotated[
        str | None, typer.Option(help="Only these: queued, in_progress, completed, …")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """List your jobs, newest first. In a pipe: one tab-separated line each.

    Example: `sluice jobs --status failed --limit 5`
    """
    from cli.client import Address, call
    from cli.screen import moment, print_table

    query = {"status": status, "model": model, "limit": limit}
    with Address.find(url, api_key, home).connect() as client:
        given = {name: value for name, value in query.items() if value is not None}
        listing = call(client, "GET", "/v1/jobs", params=given)
    if as_json:
        typer.echo(json.dumps(listing))
        return
    print_table(
        ("job", "status", "model", "created", "seconds", "tokens", "why"),
        [
            (
                job["id"],
                job["status"],
                job["model"],
                moment(job["created_at"]),
                _seconds(job),
                str((job.get("usage") or {}).get("completion_tokens", "")),
                (job.get("error") or {}).get("message") or job.get("status_reason") or "",
            )
            for job in listing["data"]
        ],
    )


def cancel(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Any of a job's three ids.")],
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop a job. What it has said so far stays readable. Fails if it had ended otherwise.

    Example: `sluice cancel job_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    from cli.client import Address, call

    with Address.find(url, api_key, home).connect() as client:
        job = call(client, "POST", f"/v1/jobs/{job_id}/cancel")
    if job["status"] not in ("cancelled", "cancelling"):
        raise Failure(f"{job_id} had already ended: {job['status']}.", code=FAILED)
    typer.echo(f"{job_id} is {job['status']}.")


def _seconds(job: dict[str, Any]) -> str:
    started, ended = job.get("started_at"), job.get("completed_at")
    return "" if started is None or ended is None else str(ended - started)
