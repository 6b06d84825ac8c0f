"""The `sluice` command without any server: what it reads, prints, refuses and loads."""

import json
import os
import socket
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli import configuration, ports
from cli.client import Address
from cli.failure import FAILED, USAGE, Failure
from cli.flower import FlowerSettings
from cli.flower import serve as serve_flower
from cli.home import CLIENT, Home
from cli.keys import span
from cli.machine import MachineSettings, plan
from cli.main import app
from tests import sqlite

runner = CliRunner()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own set-up is seen."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path))


def commands() -> list[tuple[str, ...]]:
    """Every command there is."""
    root: Any = typer.main.get_command(app)
    found: list[tuple[str, ...]] = []
    for name, command in root.commands.items():
        found += [(name, below) for below in getattr(command, "commands", {})] or [(name,)]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    """Help shows an example and what the exit codes mean."""
    shown = runner.invoke(app, [*words, "--help"])

    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert "Exit codes: 0 done" in shown.output


@pytest.mark.parametrize(
    "words, unwanted",
    [
        (["--help"], {"celery", "fastapi", "httpx", "pydantic", "sqlalchemy"}),
        (["submit", "Hi", "--url", "http://127.0.0.1:9", "--api-key", "ak_x"], {"celery", "kombu"}),
    ],
)
def test_a_command_loads_only_what_it_needs(words: list[str], unwanted: set[str]) -> None:
    """Help is quick, and a client is no server."""
    code = (
        "import sys; from cli.main import app\n"
        f"try: app({words!r})\n"
        f"except SystemExit: print(sorted({unwanted!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_without_a_key_the_user_learns_how_to_get_one() -> None:
    """It is a matter of configuration, and nothing was sent."""
    done = runner.invoke(app, ["jobs"])

    assert done.exit_code == USAGE
    assert "sluice keys create" in done.output


def test_a_server_that_is_away_is_a_failure() -> None:
    """One sentence, and no traceback."""
    done = runner.invoke(app, ["jobs", "--url", "http://127.0.0.1:9", "--api-key", "ak_x"])

    assert done.exit_code == FAILED
    assert "Is `sluice up` running?" in done.output


@pytest.mark.parametrize("words", [["submit"], ["submit", " "], ["submit", "a", "--file", "b"]])
def test_a_submission_without_a_request_is_refused(words: list[str]) -> None:
    """Before anything is asked of a server."""
    assert runner.invoke(app, [*words, "--api-key", "ak_x"]).exit_code == USAGE


def test_a_saved_key_is_shown_only_where_it_is_from(tmp_path: Path) -> None:
    """Another server must not learn it."""
    Home(tmp_path).write(CLIENT, json.dumps({"url": "http://127.0.0.1:80", "api_key": "ak_saved"}))

    assert Address.find(None, None, tmp_path) == Address("http://127.0.0.1:80", "ak_saved")
    with pytest.raises(Failure, match="There is no API key for https://elsewhere"):
        Address.find("https://elsewhere/v1", None, tmp_path)


def test_what_home_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    """Keys and passwords are in there."""
    home = Home(tmp_path / "new")
    home.create()
    home.write(CLIENT, "{}")
    home.write(CLIENT, '{"url": "x"}')

    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((home.path / CLIENT).stat().st_mode) == 0o600
    assert home.read_object(CLIENT) == {"url": "x"}


def test_a_home_has_one_up(tmp_path: Path) -> None:
    """A second one says who was first, and is free again afterwards."""
    home = Home(tmp_path)
    with home.locked(), pytest.raises(Failure, match=r"Another `sluice up` \(pid \d+\)") as raised:
        home.locked().__enter__()
    with home.locked():
        pass

    assert raised.value.code == USAGE


def test_a_port_that_is_taken_is_named_with_its_variable() -> None:
    """The message says what to set."""
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(Failure, match=rf"Port {taken} .* Set SLUICE_PORT to another one"):
            ports.claim("SLUICE_PORT", ports.LOOPBACK, taken)


def test_a_wrong_setting_is_named_and_its_value_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a password that went into the wrong variable."""
    monkeypatch.setenv("SLUICE_FLOWER_PORT", "hunter2")

    with pytest.raises(Failure, match=r"^SLUICE_FLOWER_PORT: ") as raised:
        configuration.read(FlowerSettings)

    assert "hunter2" not in raised.value.message
    assert raised.value.code == USAGE


@pytest.mark.parametrize(
    "variables",
    [
        {"SLUICE_FLOWER_HOST": "0.0.0.0"},
        {"SLUICE_FLOWER_HOST": "flower.example"},
        {"SLUICE_FLOWER_BASIC_AUTH": "no-colon"},
        {"SLUICE_FLOWER_BASIC_AUTH": "user:"},
    ],
)
def test_flower_is_not_opened_without_a_password(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reaches it sees every worker."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(Failure, match="SLUICE_FLOWER_BASIC_AUTH"):
        serve_flower(configuration.read(FlowerSettings))


def test_up_uses_what_is_there_instead_of_the_embedded_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Redis or a model of one's own is neither started nor overridden."""
    monkeypatch.setenv("SLUICE_PORT", str(ports.free()))
    embedded = plan(configuration.read(MachineSettings), "a:b")
    monkeypatch.setenv("SLUICE_REDIS_URL", "redis://redis.example/0")
    monkeypatch.setenv("SLUICE_MODEL_URL", "http://model.example/v1")
    own = plan(configuration.read(MachineSettings), "a:b")

    assert list(embedded.commands) == ["valkey", "model", "api", "worker", "beat", "flower"]
    assert list(own.commands) == ["api", "worker", "beat", "flower"]
    assert own.environment["SLUICE_REDIS_URL"] == "redis://redis.example/0"
    assert own.environment["SLUICE_MODEL_URL"] == "http://model.example/v1"


@pytest.mark.parametrize(
    "text, expected",
    [("30m", timedelta(minutes=30)), ("30d", timedelta(days=30)), ("8w", timedelta(weeks=8))],
)
def test_a_span_is_a_number_and_a_letter(text: str, expected: timedelta) -> None:
    """As in `--expires-in 30d`."""
    assert span(text) == expected


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1y", "1.5d", "999999d", " 1d"])
def test_anything_else_is_no_span(text: str) -> None:
    """And a typing error does not make a key that never expires."""
    with pytest.raises(Failure, match="no span of time"):
        span(text)


@pytest.fixture
def migrated(tmp_path: Path) -> None:
    """A SQLite database with all tables, in SLUICE_HOME."""
    sqlite.fresh(tmp_path)


@pytest.mark.usefixtures("migrated")
def test_a_key_is_shown_once() -> None:
    """Creating prints it, alone on stdout; listing never does."""
    made = runner.invoke(app, ["keys", "create", "--account", "acme", "--expires-in", "1d"])
    rows = json.loads(runner.invoke(app, ["keys", "list", "--json"]).stdout)

    text = made.stdout.strip()
    assert text.startswith("ak_")
    assert [row["account"] for row in rows] == ["acme"]
    life = rows[0]["expires_at"] - rows[0]["created_at"]
    assert life == pytest.approx(timedelta(days=1).total_seconds(), abs=1)
    assert text not in json.dumps(rows)


@pytest.mark.usefixtures("migrated")
def test_a_revoked_key_is_listed_as_such() -> None:
    """And revoking what is not there fails."""
    made = json.loads(runner.invoke(app, ["keys", "create", "--account", "a", "--json"]).stdout)
    revoked = runner.invoke(app, ["keys", "revoke", made["id"]])
    rows = json.loads(runner.invoke(app, ["keys", "list", "--account", "a", "--json"]).stdout)

    assert revoked.exit_code == 0
    assert rows[0]["revoked_at"] is not None
    assert runner.invoke(app, ["keys", "revoke", "key_none"]).exit_code == FAILED


def test_a_database_without_tables_is_explained() -> None:
    """Not with a traceback, but with the command that makes them."""
    done = runner.invoke(app, ["keys", "list"])

    assert done.exit_code == FAILED
    assert "sluice migrate" in done.output


def test_the_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken parts end with exit code 1, each with advice, and secrets stay hidden."""
    monkeypatch.setenv("SLUICE_REDIS_URL", "redis://:hunter2@127.0.0.1:9/0")
    monkeypatch.setenv("SLUICE_WROKER_CONCURRENCY", "7")

    done = runner.invoke(app, ["doctor", "--json"])

    found = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == FAILED
    assert "SLUICE_WROKER_CONCURRENCY" in found["configuration"]["advice"]
    assert "sluice migrate" in found["database"]["advice"]
    assert not found["Redis"]["ok"]
    assert found["catalogue"]["ok"]
    assert "hunter2" not in done.output
