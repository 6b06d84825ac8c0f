"""`sluice up` for real: from an empty folder to an answer of the model, and every way it ends."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

from cli import ports

READY_WITHIN = 60.0
GONE_WITHIN = 30.0
NAMES = {"valkey", "model", "api", "worker", "beat", "flower"}
SLUICE = (sys.executable, "-P", "-m", "cli")

pytestmark = pytest.mark.timeout(240)


class Machine:
    """A running `sluice up`; its output is in a file beside its home."""

    def __init__(self, folder: Path, port: int) -> None:
        self.home = folder / "home"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
        self.environment = inherited | {
            "SLUICE_HOME": str(self.home),
            "SLUICE_PORT": str(port),
        }
        self._folder = folder
        self._log = folder / f"up-{port}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*SLUICE, "up"],
                env=self.environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Everything it has printed."""
        return self._log.read_text()

    @property
    def children(self) -> dict[str, int]:
        """The process ids of the children that have started."""
        started = re.findall(r"(\w+) started \(pid=(\d+)\)", self.said)
        return {name: int(pid) for name, pid in started}

    @property
    def saved(self) -> dict[str, Any]:
        """What clients on this machine use."""
        found: dict[str, Any] = json.loads((self.home / "client.json").read_text())
        return found

    def until_ready(self) -> "Machine":
        """Wait for the block with the URL and the key."""
        self.until("it is ready", lambda: "Sluice is ready" in self.said)
        return self

    def until_started(self) -> "Machine":
        """Wait for every child to run."""
        self.until("all have started", lambda: self.children.keys() == NAMES)
        return self

    def until(self, what: str, true: Callable[[], bool]) -> None:
        """Poll; fails with the output when it ends or takes too long."""
        deadline = time.monotonic() + READY_WITHIN
        while not true():
            running = self.process.poll() is None and time.monotonic() < deadline
            assert running, f"not so: {what}\n{self.said}"
            time.sleep(0.05)

    def ctrl_c(self) -> int:
        """Interrupt it as a terminal does: the whole foreground group. Returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(GONE_WITHIN)

    def sluice(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command on the same home."""
        return subprocess.run(
            [*SLUICE, *words],
            env=self.environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def left(self) -> dict[str, int]:
        """The children that still run, once there was time to go."""
        deadline = time.monotonic() + GONE_WITHIN
        while running := {n: pid for n, pid in self.children.items() if _runs(pid)}:
            if time.monotonic() > deadline:
                return running
            time.sleep(0.05)
        return {}

    def clean_up(self) -> None:
        """End whatever a failed test left behind."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GONE_WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.left().values():
            os.kill(pid, signal.SIGKILL)


Start = Callable[..., Machine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `sluice up` on one folder, as often as asked; nothing of it outlives the test."""
    started: list[Machine] = []

    def start(port: int | None = None) -> Machine:
        started.append(Machine(tmp_path, port or ports.free()))
        return started[-1]

    yield start
    for machine in started:
        machine.clean_up()


def test_from_an_empty_folder_to_an_answer_and_back(start: Start) -> None:
    """Everything runs, the official SDK gets an answer, and Ctrl-C leaves no process.

    SIGHUP has both read the catalogue anew. What the others stand on goes last, so that nothing
    complains on the way out.
    """
    machine = start().until_ready()
    saved = machine.saved
    with OpenAI(base_url=f"{saved['url']}/v1", api_key=saved["api_key"]) as client:
        answer = client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": "Say hello."}],
            max_tokens=8,
        )
    doctor = machine.sluice("doctor", "--json")
    second = machine.sluice("up")
    machine.process.send_signal(signal.SIGHUP)
    machine.until("both reload", lambda: machine.said.count("catalog_reloaded") == 2)
    code = machine.ctrl_c()

    assert answer.choices[0].message.content
    assert saved["api_key"] in machine.said
    assert "curl" in machine.said
    assert doctor.returncode == 0, doctor.stdout
    assert second.returncode == 2
    assert f"pid {machine.process.pid}" in second.stderr
    assert code == 130
    assert machine.left() == {}
    assert set(re.findall(r"(\w+) stopped \(rc=", machine.said)[-2:]) == {"valkey", "model"}
    assert "Traceback" not in machine.said


class Weather(BaseModel):
    """The weather of the next days."""

    city: str
    days: int


def test_the_small_model_keeps_to_a_schema_and_takes_the_results_of_tools(start: Start) -> None:
    """As far as it goes: its template has no words for tools, so it never calls one by itself."""
    saved = start().until_ready().saved
    asked: dict[str, Any] = {"model": "smollm2-135m", "max_tokens": 80, "temperature": 0}
    question: Any = {"role": "user", "content": "Weather in Oslo for 3 days."}
    call = {"name": "Weather", "arguments": '{"city": "Oslo", "days": 3}'}
    turns: list[Any] = [
        question,
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c", "content": "It rains."},
    ]
    with OpenAI(base_url=f"{saved['url']}/v1", api_key=saved["api_key"]) as client:
        held = client.chat.completions.parse(messages=[question], response_format=Weather, **asked)
        with client.chat.completions.stream(
            messages=[question], response_format=Weather, **asked
        ) as stream:
            streamed = stream.get_final_completion()
        told = client.chat.completions.create(
            messages=turns, tools=[pydantic_function_tool(Weather)], **asked
        )

    assert isinstance(held.choices[0].message.parsed, Weather)
    assert isinstance(streamed.choices[0].message.parsed, Weather)
    assert told.choices[0].message.content


def test_a_second_start_goes_on_with_key_and_jobs(start: Start, tmp_path: Path) -> None:
    """What was asked and answered yesterday is there today, under the same key."""
    first = start().until_ready()
    # A model this small may ramble for minutes when it is let.
    short = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    (tmp_path / "short.json").write_text(json.dumps(short))
    submitted = first.sluice("submit", "short.json")
    before = first.sluice("jobs", "--json")
    first.process.terminate()
    code = first.process.wait(GONE_WITHIN)
    key = first.saved["api_key"]

    second = start().until_ready()
    job_id = json.loads(before.stdout)["data"][0]["id"]
    watched = second.sluice("watch", job_id)

    assert code == 0
    assert submitted.returncode == 0, submitted.stderr
    assert submitted.stdout.strip()
    assert job_id in submitted.stderr
    assert second.saved["api_key"] == key
    assert (watched.returncode, watched.stdout) == (0, submitted.stdout)


def test_a_child_that_dies_ends_everything(start: Start) -> None:
    """Half a machine would look alive; the last line says which part failed."""
    machine = start().until_started()
    os.kill(machine.children["worker"], signal.SIGKILL)

    assert machine.process.wait(GONE_WITHIN) == 1
    assert "this ended: worker (killed by signal 9)" in machine.said
    assert machine.left() == {}


def test_ctrl_c_costs_a_running_job_no_attempt(start: Start, tmp_path: Path) -> None:
    """The worker hands it back while the model still answers; the next start takes it up again."""
    machine = start().until_ready()
    endless = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True}
    (tmp_path / "endless.json").write_text(json.dumps(endless))
    submitted = machine.sluice("submit", "--background", "endless.json")
    job_id = submitted.stdout.strip()
    machine.until(
        "it runs", lambda: job_id in machine.sluice("jobs", "--status", "in_progress").stdout
    )
    machine.ctrl_c()

    with closing(sqlite3.connect(machine.home / "sluice.db")) as database:
        row = database.execute("SELECT status, attempt - forgiven FROM jobs").fetchone()
    assert row == ("queued", 0)
    assert "attempt_failed" not in machine.said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
def test_kill_9_leaves_no_orphan(start: Start) -> None:
    """Nobody is left to stop them, so the children go by themselves, and the folder is free."""
    machine = start().until_started()
    machine.process.kill()
    machine.process.wait()

    assert machine.left() == {}
    assert start().until_started().ctrl_c() == 130


def test_a_port_that_is_taken_is_said_at_once(start: Start, tmp_path: Path) -> None:
    """Before anything was started, with the variable that moves it."""
    port = ports.free()
    with socket.create_server((ports.LOOPBACK, port)):
        machine = start(port)
        code = machine.process.wait(READY_WITHIN)

    assert code == 2
    assert f"Port {port} " in machine.said
    assert "SLUICE_PORT" in machine.said
    assert machine.children == {}
    assert not (tmp_path / "home" / "sluice.db").exists()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
