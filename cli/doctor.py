"""`sluice doctor`: look at everything a process depends on, and say what to do about it."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failure import FAILED, Failure
from cli.options import AsJson

if TYPE_CHECKING:
    from shared.settings import StoreSettings
    from workers.settings import WorkerSettings

PING_WAIT = 2.0
"""Seconds that workers have to answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` is empty when there is nothing to do."""

    subject: str
    ok: bool
    found: str
    advice: str = ""


def doctor(
    rows: Annotated[
        bool, typer.Option("--audit", help="Check every row of the database instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check configuration, database, Redis, workers and catalogue, and say what to do.

    Looks at what the environment names; without SLUICE_REDIS_URL, at the `sluice up` that runs on
    SLUICE_HOME. Example: `SLUICE_REDIS_URL=redis://redis:6379/0 sluice doctor --json`

    With `--audit`: whether everything in the database is as it must be, job by job. It only
    reads, in small portions, so the service may run meanwhile.
    """
    _see_what_up_runs()
    if rows:
        from cli.audit import audit

        audit(as_json)
        return
    findings = list(examine())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        _show(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)


def examine() -> Iterator[Finding]:
    """Look at everything, in the order in which things depend on each other."""
    from cli import configuration
    from workers.settings import WorkerSettings

    try:
        yield _configuration()
        settings = configuration.read(WorkerSettings)
    except Failure as failure:
        yield Finding("configuration", False, failure.message, "Correct these variables.")
        return
    yield _guarded("database", _database, settings)
    yield _guarded("catalogue", _catalog, settings)
    redis = _guarded("Redis", _redis, settings)
    yield redis
    if redis.ok or redis.found.startswith("answers"):
        yield _guarded("workers", _workers, settings)


def _see_what_up_runs() -> None:
    """Without a Redis in the environment, adopt the settings of the `sluice up` that is running."""
    from pathlib import Path

    from cli.home import RUNNING, Home

    if "SLUICE_REDIS_URL" not in os.environ:
        home = Home(Path(os.environ.get("SLUICE_HOME", ".sluice")))
        for name, value in home.read_object(RUNNING).items():
            os.environ.setdefault(name, str(value))


def _configuration() -> Finding:
    """Every variable that is set, as the processes understand it; secrets stay hidden."""
    from cli import configuration
    from cli.flower import FlowerSettings
    from cli.machine import MachineSettings
    from workers.settings import WorkerSettings

    understood: dict[str, Any] = {"SLUICE_URL": "(client)", "SLUICE_API_KEY": "(client)"}
    for kind in (MachineSettings, WorkerSettings, FlowerSettings):
        settings = configuration.read(kind)
        for name in kind.model_fields:
            understood[f"SLUICE_{name.upper()}"] = getattr(settings, name)
    given = sorted(name for name in os.environ if name.startswith("SLUICE_"))
    found = "\n".join(f"{name} = {understood[name]}" for name in given if name in understood)
    unread = ", ".join(name for name in given if name not in understood)
    advice = f"Nothing of ours reads {unread}: misspelt?" if unread else ""
    return Finding("configuration", True, found or "all defaults", advice)


def _guarded(
    subject: str, look: Callable[["WorkerSettings"], Finding], settings: "WorkerSettings"
) -> Finding:
    try:
        return look(settings)
    except Failure as failure:
        return Finding(subject, False, failure.message)
    except Exception as error:  # whatever ails it is the finding
        return Finding(subject, False, f"{type(error).__name__}: {error}")


def _database(settings: "StoreSettings") -> Finding:
    from cli.database import as_failures, shown
    from shared import revisions

    where = shown(settings)
    with as_failures(settings):
        current, newest = revisions.compare(settings.database)
    if current == newest:
        return Finding("database", True, f"{where}, revision {current}")
    found = f"{where}, revision {current or 'none'}; this version needs {newest}"
    return Finding("database", False, found, "Run `sluice migrate`.")


def _catalog(settings: "StoreSettings") -> Finding:
    from shared import catalog

    try:
        loaded = catalog.load(settings.catalog)
    except catalog.CatalogError as error:
        return Finding("catalogue", False, str(error), "Correct that entry.")
    lacking = sorted(
        f"{upstream.api_key_env} (upstream {name})"
        for name, upstream in loaded.upstreams.items()
        if upstream.api_key_env and not os.environ.get(upstream.api_key_env)
    )
    advice = f"Not served unless workers have {', '.join(lacking)}." if lacking else ""
    found = f"{settings.catalog}: {len(loaded.models)} models, {len(loaded.upstreams)} upstreams"
    return Finding("catalogue", True, found, advice)


def _redis(settings: "StoreSettings") -> Finding:
    import redis
    from kombu.exceptions import OperationalError
    from kombu.utils.url import maybe_sanitize_url

    from shared import queue

    where = maybe_sanitize_url(settings.redis)
    try:
        with queue.connect(settings.redis).connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            client = connection.default_channel.client
            info = client.info("server")
            policy = _setting(client, "maxmemory-policy")
            durable = _setting(client, "appendonly")
    except (OperationalError, redis.RedisError) as error:
        return Finding(
            "Redis",
            False,
            f"{where}: {error}",
            "Start it (`sluice up` does), or set SLUICE_REDIS_URL.",
        )
    found = (
        f"answers at {where}, version {info.get('valkey_version') or info['redis_version']}, "
        f"maxmemory-policy {policy or 'unknown'}, appendonly {durable or 'unknown'}"
    )
    if policy not in (None, "noeviction"):
        return Finding(
            "Redis",
            False,
            found,
            "Set maxmemory-policy to noeviction: a full Redis "
            "would silently forget queues and streams.",
        )
    advice = "" if durable != "no" else "Set appendonly to yes: streams then survive its restart."
    return Finding("Redis", True, found, advice)


def _setting(client: Any, name: str) -> str | None:
    """A server's setting, or None where it may not be asked for."""
    import redis

    try:
        value = client.config_get(name).get(name)
    except redis.ResponseError:
        return None
    return str(value) if value is not None else None


def _workers(settings: "WorkerSettings") -> Finding:
    from shared import queue

    answers = queue.connect(settings.redis).control.ping(timeout=PING_WAIT)
    names = sorted(name for answer in answers for name in answer)
    if not names:
        return Finding("workers", False, "none answers", "Start `sluice worker` on this Redis.")
    return Finding("workers", True, f"{len(names)} live: {', '.join(names)}")


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", show_lines=True)
    for column in ("", "checked", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("broken", style="bold red")
        table.add_row(
            mark, *(Text(text) for text in (finding.subject, finding.found, finding.advice))
        )
    Console().print(table)
