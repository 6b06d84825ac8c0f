"""The `sluice` command: names its subcommands and turns their failures into exit codes.

Each subcommand imports what it needs when it runs, so that `--help` is quick and a client never
loads the server's libraries.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from cli import (
    accounts,
    ask,
    audit_log,
    batch_run,
    batches,
    credits,
    doctor,
    jobs,
    keys,
    models,
    processes,
    up,
    webhooks,
)
from cli.failure import Failure

EXIT_CODES = (
    "Exit codes: 0 done · 1 it failed · 2 called or configured wrongly · 130 stopped by Ctrl-C. "
    "Settings come from the environment (SLUICE_…); `sluice doctor` shows and checks them."
)


class Commands(TyperGroup):
    """The subcommands; a `Failure` of any of them becomes one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except Failure as failure:
            typer.secho(failure.message, err=True, fg=typer.colors.RED)
            raise typer.Exit(failure.code) from None


app = typer.Typer(
    name="sluice",
    cls=Commands,
    help="A job queue for LLM completions, behind the OpenAI API. Begin with `sluice up`.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # a bug's traceback belongs in a log, undecorated
)

model_commands = typer.Typer()

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "One machine": {"up": up.up},
    "As a client": {
        "submit": ask.submit,
        "watch": ask.watch,
        "jobs": jobs.jobs,
        "cancel": jobs.cancel,
    },
    "Housekeeping": {"doctor": doctor.doctor, "migrate": processes.migrate},
    "Single processes": {
        "api": processes.api,
        "worker": processes.worker,
        "beat": processes.beat,
        "flower": processes.flower,
        "model": processes.model,
        "valkey": processes.valkey,
    },
}
CLIENTS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "batch": (
        "Run up to 100,000 requests from a file, and see how batches come along.",
        {
            "run": batch_run.run,
            "list": batches.list_all,
            "show": batches.show,
            "results": batches.results,
            "cancel": batches.cancel,
            "pause": batches.pause,
            "resume": batches.resume,
            "retry": batches.retry,
            "change": batches.change,
        },
    ),
    "webhooks": (
        "Register receivers of events, and see what became of each delivery.",
        {
            "create": webhooks.create,
            "list": webhooks.list_all,
            "change": webhooks.change,
            "enable": webhooks.enable,
            "disable": webhooks.disable,
            "rotate": webhooks.rotate,
            "delete": webhooks.delete,
            "test": webhooks.try_out,
            "deliveries": webhooks.deliveries,
            "redeliver": webhooks.redeliver,
        },
    ),
}
ADMINISTRATION: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "accounts": (
        "Make, list, limit and disable accounts.",
        {
            "create": accounts.create,
            "list": accounts.list_all,
            "limit": accounts.limit,
            "disable": accounts.disable,
            "enable": accounts.enable,
        },
    ),
    "keys": (
        "Create, list, limit, rotate and revoke API keys.",
        {
            "create": keys.create,
            "list": keys.list_all,
            "limit": keys.limit,
            "rotate": keys.rotate,
            "revoke": keys.revoke,
        },
    ),
    "credits": (
        "Grant credits and read an account's books.",
        {
            "grant": credits.grant,
            "balance": credits.balance,
            "ledger": credits.ledger,
            "losses": credits.losses,
        },
    ),
}

for panel, commands in GROUPS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel, epilog=EXIT_CODES)(command)
for panel, groups in {"As a client": CLIENTS, "Administration": ADMINISTRATION}.items():
    for group, (purpose, commands) in groups.items():
        below = typer.Typer(no_args_is_help=True, help=purpose)
        for name, command in commands.items():
            below.command(name, epilog=EXIT_CODES)(command)
        app.add_typer(below, name=group, rich_help_panel=panel)
app.command("audit-log", rich_help_panel="Administration", epilog=EXIT_CODES)(audit_log.audit_log)
model_commands.callback(invoke_without_command=True, epilog=EXIT_CODES)(models.models)
model_commands.command("check", epilog=EXIT_CODES)(models.check)
app.add_typer(model_commands, name="models", rich_help_panel="As a client")
