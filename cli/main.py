"""The `sluice` command: names its subcommands and turns their failures into exit codes.

Each subcommand imports what it needs when it runs, so that `--help` is quick and a client never
loads the server's libraries.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from cli import ask, doctor, jobs, keys, processes, up
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

key_commands = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")

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
KEYS: dict[str, Callable[..., None]] = {
    "create": keys.create,
    "list": keys.list_all,
    "revoke": keys.revoke,
}

for panel, commands in GROUPS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel, epilog=EXIT_CODES)(command)
for name, command in KEYS.items():
    key_commands.command(name, epilog=EXIT_CODES)(command)
app.add_typer(key_commands, name="keys", rich_help_panel="Housekeeping")
