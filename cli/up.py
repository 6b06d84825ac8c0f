"""`sluice up`: everything on one machine, in the foreground, with nothing to install by hand."""

import json
import os
import secrets
from typing import TYPE_CHECKING

import typer

from cli.failure import FAILED, INTERRUPTED, Failure
from cli.screen import step

if TYPE_CHECKING:
    from cli.children import Children
    from cli.home import Home
    from cli.machine import MachineSettings, Plan

FLOWER_USER = "sluice"


def up() -> None:
    """Start everything on this machine and say how to use it; Ctrl-C stops it all.

    State lives in SLUICE_HOME (`./.sluice` unless set); the API listens on SLUICE_PORT (8080
    unless set). SLUICE_REDIS_URL, SLUICE_DATABASE_URL and SLUICE_MODEL_URL each name one of yours
    to use instead of the embedded one.

    Example: `SLUICE_PORT=9000 sluice up`
    """
    from cli import configuration
    from cli.home import RUNNING, Home
    from cli.machine import MachineSettings, plan

    settings = configuration.read(MachineSettings)
    os.umask(0o077)  # prompts and answers are this user's alone
    home = Home(settings.home)
    home.create()
    with home.locked():
        planned = plan(settings, _flower_auth(home))
        _migrate(settings)
        home.write(RUNNING, json.dumps(dict(planned.settings)))
        try:
            _run(home, settings, planned)
        finally:
            home.remove(RUNNING)


def _run(home: "Home", settings: "MachineSettings", planned: "Plan") -> None:
    """Run all processes until a signal comes. Raises `Failure` when one of them ended first."""
    from cli.children import Children
    from cli.machine import GROUND, RELOAD
    from cli.welcome import Welcome

    welcome = Welcome(home, settings, planned)
    children = Children(
        ground=GROUND, reload=RELOAD, beside=lambda: welcome.say(children.terminate)
    )
    for name, command in planned.commands.items():
        children.add(name, command, planned.environment)
    step(f"Starting {', '.join(planned.commands)} …")
    children.loop()
    welcome.over.set()
    if welcome.failure is not None:
        raise welcome.failure
    if children.fallen:
        ends = " and ".join(f"{name} ({_how(children, name)})" for name in children.fallen)
        raise Failure(f"Everything was stopped because this ended: {ends}.", code=FAILED)
    step("Stopped. `sluice up` goes on where it was.")
    raise typer.Exit(INTERRUPTED if children.returncode == INTERRUPTED else 0)


def _migrate(settings: "MachineSettings") -> None:
    from cli.database import as_failures, shown
    from shared import revisions

    step(f"Preparing the database {shown(settings)} …")
    with as_failures(settings):
        revisions.migrate(settings.database)


def _flower_auth(home: "Home") -> str:
    """`user:password` for Flower; made once and kept."""
    from cli.home import FLOWER_AUTH

    auth = home.read(FLOWER_AUTH)
    if not auth:
        auth = f"{FLOWER_USER}:{secrets.token_urlsafe(18)}"
        home.write(FLOWER_AUTH, auth)
    return auth


def _how(children: "Children", name: str) -> str:
    code = children.exit_code(name)
    if code is not None and code < 0:
        return f"killed by signal {-code}"
    return f"exit code {code}; its last lines above say why"
