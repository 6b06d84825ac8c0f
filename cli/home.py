"""SLUICE_HOME: what the embedded default keeps on disk, and the lock that one `up` holds on it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.failure import USAGE, Failure

CLIENT = "client.json"
"""Where the API is, and a key for it: `{"url", "api_key"}`."""
RUNNING = "running.json"
"""The settings that a running `sluice up` gave to its processes."""
FLOWER_AUTH = "flower-auth"
"""`user:password` for Flower."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one embedded installation. Its files are readable by their owner only."""

    path: Path

    def create(self) -> None:
        """Make the folder (mode 0700) if there is none. Raises `Failure` when that is refused."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"SLUICE_HOME: {error}", code=USAGE) from None

    def read(self, name: str) -> str | None:
        """The text of a file, or None when there is no such file."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError:
            return None

    def read_object(self, name: str) -> dict[str, Any]:
        """A JSON object from a file; empty when there is none, or something else."""
        try:
            found = json.loads(self.read(name) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole (mode 0600): a reader sees the old text or the new one."""
        fresh = self.path / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600, exist_ok=False)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.path / name)

    def remove(self, name: str) -> None:
        """Delete a file, if there is one."""
        (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only `sluice up` on this folder. Raises `Failure` that names the other one."""
        with (self.path / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise Failure(
                    f"Another `sluice up` (pid {file.read().strip() or 'unknown'}) is running on "
                    f"{self.path.absolute()}. Stop it, or set SLUICE_HOME to another folder.",
                    code=USAGE,
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
