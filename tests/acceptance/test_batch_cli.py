"""`sluice batch` in the terminal: whatever stops it, every line's result is in the file once."""

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cli.failure import FAILED, INTERRUPTED, USAGE
from cli.main import app
from tests.fakes.upstream import Say, Status, WaitFor
from tests.stack import Process, Stack, eventually
from tests.valkey import free_port

pytestmark = pytest.mark.parametrize("service", ["sqlite"], indirect=True, scope="module")

WITHIN = 60.0
BROKEN = Status(400, {"error": {"message": "No such thing.", "code": "odd"}})

Object = dict[str, Any]


def jsonl(*models: str) -> bytes:
    """An input of one line for each of these models."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "Hi"}]},
        }
        for number, model in enumerate(models)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def custom_ids(out: Path) -> list[str]:
    """Whose results a file has, sorted; fails when a line is no JSON."""
    return sorted(json.loads(line)["custom_id"] for line in out.read_bytes().splitlines())


def all_of(many: int) -> list[str]:
    """What it has in the end."""
    return sorted(f"line-{number}" for number in range(many))


@dataclass
class Shell:
    """Somebody with an account, a folder and an input."""

    service: Stack
    folder: Path
    key: str
    url: str

    @property
    def source(self) -> Path:
        """The input."""
        return self.folder / "in.jsonl"

    @property
    def out(self) -> Path:
        """Where results go."""
        return self.folder / "out.jsonl"

    @property
    def note(self) -> Path:
        """What is left to do."""
        return self.folder / "out.jsonl.sluice"

    @property
    def http(self) -> httpx.Client:
        """The same account without the CLI."""
        return self.service.http(self.key)

    @property
    def batches(self) -> list[Object]:
        """All that were made."""
        found: list[Object] = self.http.get("/v1/batches").json()["data"]
        return found

    def words(self, *words: str) -> list[str]:
        """A `sluice batch …` with the way to the API."""
        return [*words, "--url", self.url, "--api-key", self.key]

    def run(self, *words: str) -> list[str]:
        """A `sluice batch run` of the input."""
        return self.words("run", str(self.source), "--out", str(self.out), *words)

    def say(self, *words: str, code: int = 0) -> str:
        """What a command prints, in this process; it ends with that exit code."""
        done = CliRunner().invoke(app, ["batch", *words])
        assert done.exit_code == code, (done.output, done.exception)
        return done.output if code else done.stdout

    def start(self, *words: str) -> Process:
        """The same in a process of its own."""
        return self.service.start("batch", *(words or self.run()))

    def written(self, lines: int) -> None:
        """Wait until so many results are noted as written."""

        def look() -> bool:
            return self.note.exists() and json.loads(self.note.read_text())["lines"] == lines

        eventually(look, WITHIN)

    def has_ended(self) -> None:
        """Wait until the only batch has."""
        eventually(lambda: self.batches[0]["status"] == "completed", WITHIN)


@pytest.fixture
def shell(service: Stack, tmp_path: Path) -> Shell:
    """One whose input has two lines that complete."""
    service.upstream.script("test-1", Say("Hello"))
    service.upstream.script("test-2", BROKEN)
    shell = Shell(service, tmp_path, service.mint(tmp_path.name), service.url)
    shell.source.write_bytes(jsonl("test-1", "test-1"))
    return shell


@pytest.fixture
def gate(service: Stack) -> Iterator[threading.Event]:
    """What the model `test-3` waits for."""
    gate = threading.Event()
    service.upstream.script("test-3", WaitFor(gate), Say("Slow"))
    yield gate
    gate.set()


def test_a_batch_runs_from_file_to_file(shell: Shell) -> None:
    """With what was asked for, progress in plain lines, and the batch itself for programs."""
    terms = ["--window", "2h", "--priority", "3", "--concurrency", "1", "--metadata", "team=blue"]
    run = shell.start(*shell.run(*terms))

    assert run.wait(WITHIN) == 0
    assert custom_ids(shell.out) == all_of(2)
    assert {path.name for path in shell.folder.iterdir()} == {"in.jsonl", "out.jsonl"}
    [batch] = shell.batches
    assert (batch["priority"], batch["concurrency"]) == (3, 1)
    assert (batch["completion_window"], batch["metadata"]) == ("2h", {"team": "blue"})
    printed = shell.say(*shell.words("results", batch["id"], "--follow"))
    assert printed == shell.out.read_text()
    said = run.log.read_text()
    assert "of 2 done · 0 failed" in said
    assert f"{batch['id']} · completed · 2 of 2 done" in said


def test_lines_that_fail_are_told_in_the_end(shell: Shell) -> None:
    """The command fails, the results have them, and a retry needs no new input."""
    shell.source.write_bytes(jsonl("test-1", "test-2", "test-2"))
    said = shell.say(*shell.run(), code=FAILED)

    [batch] = shell.batches
    assert "completed · 3 of 3 done · 2 failed" in said
    assert "2 × " in said
    assert "No such thing." in said
    assert f"sluice batch retry {batch['id']}" in said
    assert custom_ids(shell.out) == all_of(3)

    shell.service.upstream.script("test-2", Say("Better"))
    shell.say(*shell.words("retry", batch["id"]))
    shell.has_ended()
    printed = shell.say(*shell.words("results", batch["id"]))
    found = [json.loads(line) for line in printed.splitlines()]
    assert sorted(each["custom_id"] for each in found) == all_of(3)
    assert {each["response"]["status_code"] for each in found} == {200}
    failed = shell.words("results", batch["id"], "--status", "failed")
    assert shell.say(*failed) == ""


def test_after_a_crash_it_goes_on_where_it_was(shell: Shell, gate: threading.Event) -> None:
    """Killed between two results, with half a line in the file."""
    shell.source.write_bytes(jsonl("test-1", "test-1", "test-3"))
    run = shell.start()
    shell.written(2)
    run.kill()
    with shell.out.open("ab") as file:
        file.write(b'{"id":"batch_req_')
    gate.set()
    again = shell.start()

    assert again.wait(WITHIN) == 0
    assert custom_ids(shell.out) == all_of(3)
    assert not shell.note.exists()
    assert len(shell.batches) == 1


def test_ctrl_c_leaves_the_batch_running(shell: Shell, gate: threading.Event) -> None:
    """It says how to go on; what was tried anew meanwhile is in the file once, as it is now."""
    shell.source.write_bytes(jsonl("test-2", "test-1", "test-3"))
    run = shell.start()
    shell.written(2)
    run.send(signal.SIGINT)
    assert run.wait() == INTERRUPTED
    [batch] = shell.batches
    said = run.log.read_text()
    assert f"`sluice batch cancel {batch['id']}` stops it. The same command goes on" in said
    assert batch["status"] == "in_progress"

    gate.set()
    shell.has_ended()
    shell.service.upstream.script("test-2", Say("Better"))
    shell.say(*shell.words("retry", batch["id"]))
    shell.has_ended()
    shell.say(*shell.run())
    assert custom_ids(shell.out) == all_of(3)
    assert b'"status_code":400' not in shell.out.read_bytes()


def test_an_api_that_is_away_is_waited_for(shell: Shell, gate: threading.Event) -> None:
    """It was killed, and is started again when the batch has long ended."""
    shell.source.write_bytes(jsonl("test-1", "test-3", "test-1"))
    port = free_port()
    shell.url = f"http://127.0.0.1:{port}"
    api = shell.service.api(port)
    run = shell.start()
    shell.written(2)
    api.kill()
    eventually(lambda: "Trying again" in run.log.read_text(), WITHIN)
    gate.set()
    shell.has_ended()
    assert run.running
    api = shell.service.api(port)

    assert run.wait(WITHIN) == 0
    assert custom_ids(shell.out) == all_of(3)
    api.stop()


def test_a_crash_after_submitting_makes_no_second_batch(shell: Shell) -> None:
    """Though the answer was never noted."""
    batch_id = shell.say(*shell.run("--detach")).strip()
    noted = json.loads(shell.note.read_text())
    assert noted["batch_id"] == batch_id
    shell.note.write_text(json.dumps({**noted, "batch_id": None}))
    batch = json.loads(shell.say(*shell.run("--json")).splitlines()[-1])

    assert (batch["id"], batch["status"]) == (batch_id, "completed")
    assert len(shell.batches) == 1
    assert custom_ids(shell.out) == all_of(2)


def test_nothing_is_written_over_unasked(shell: Shell) -> None:
    """Neither results, nor what was begun with another input or elsewhere."""
    shell.out.write_text("mine\n")
    assert "--force" in shell.say(*shell.run(), code=USAGE)
    assert (shell.out.read_text(), shell.batches) == ("mine\n", [])
    first = shell.say(*shell.run("--force", "--detach")).strip()

    shell.source.write_bytes(jsonl("test-1"))
    assert first in shell.say(*shell.run(), code=USAGE)
    shell.say(*shell.run("--force"))
    assert custom_ids(shell.out) == all_of(1)
    assert "--force" in shell.say(*shell.run(), code=USAGE)
    assert custom_ids(shell.out) == all_of(1)


def test_a_wrong_input_is_explained_and_leaves_nothing(shell: Shell) -> None:
    """By a dry run, which makes no batch, as by the real one; once corrected, it runs."""
    shell.source.write_bytes(jsonl("test-1", "unknown") + b"nonsense\n")
    for words, made in (("--dry-run",), 0), ((), 1):
        said = shell.say(*shell.run(*words), code=FAILED)
        assert "line 2: " in said
        assert "line 3: " in said
        assert len(shell.batches) == made
        assert list(shell.folder.iterdir()) == [shell.source]

    shell.source.write_bytes(jsonl("test-1"))
    assert shell.say(*shell.run("--dry-run")).startswith("1 lines, all of them right")
    shell.say(*shell.run())
    assert custom_ids(shell.out) == all_of(1)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--metadata", "blue"], "is no KEY=VALUE"),
        (["--window", "never"], "completion_window"),
    ],
)
def test_a_wrong_call_leaves_nothing(shell: Shell, words: list[str], said: str) -> None:
    """And says what is wrong with it."""
    done = CliRunner().invoke(app, ["batch", *shell.run(*words)])

    assert done.exit_code in (FAILED, USAGE)
    assert said in done.output
    assert list(shell.folder.iterdir()) == [shell.source]


def test_neither_does_a_wrong_key(shell: Shell) -> None:
    """It is tried at once, before anything is begun."""
    shell.key = "ak_wrong"
    assert "SLUICE_API_KEY" in shell.say(*shell.run(), code=FAILED)
    assert list(shell.folder.iterdir()) == [shell.source]


def test_an_input_has_to_be_there(shell: Shell) -> None:
    """As it is; nor is it written over."""
    into_itself = shell.words("run", str(shell.source), "--out", str(shell.source), "--force")
    assert "into the input" in shell.say(*into_itself, code=USAGE)
    assert shell.source.read_bytes() == jsonl("test-1", "test-1")
    shell.source.unlink()
    assert "does not exist" in shell.say(*shell.run(), code=USAGE)
    assert list(shell.folder.iterdir()) == []


def test_a_batch_is_steered_from_the_terminal(shell: Shell, gate: threading.Event) -> None:
    """Looked at, changed, paused, resumed and cancelled."""
    shell.source.write_bytes(jsonl("test-3", "test-1"))
    batch_id = shell.say(*shell.run("--detach")).strip()
    shell.say(*shell.words("change", batch_id, "--priority", "9"))
    assert f"{batch_id} · paused" in shell.say(*shell.words("pause", batch_id))
    assert "paused" not in shell.say(*shell.words("resume", batch_id))
    shown = json.loads(shell.say(*shell.words("show", batch_id, "--json")))
    assert (shown["id"], shown["priority"], shown["paused_at"]) == (batch_id, 9, None)
    shell.say(*shell.words("cancel", batch_id))
    said = shell.say(*shell.run(), code=FAILED)

    assert f"{batch_id} · cancelled · 2 of 2 done" in said
    assert "× batch_cancelled" in said
    assert custom_ids(shell.out) == all_of(2)
    [row] = shell.say(*shell.words("list", "--status", "cancelled")).splitlines()
    assert row.split("\t")[:3] == [batch_id, "cancelled", "2"]
    unknown = shell.words("show", "batch_" + "0" * 26)
    assert "404" in shell.say(*unknown, code=FAILED)
