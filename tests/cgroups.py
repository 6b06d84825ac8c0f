"""A memory cgroup of a test's own, of version 1 or 2: processes in it die by the OOM killer."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.stack import eventually


@dataclass(frozen=True)
class Version:
    """Where a version of cgroups has its memory groups, and what it calls their files."""

    root: Path
    controllers: str
    """What its line in `/proc/self/cgroup` names."""
    limit: str
    swap_limit: str
    """A machine may lack it."""
    usage: str
    events: str
    with_swap: bool
    """Whether the limit of swap counts memory as well."""


V1: Final = Version(
    root=Path("/sys/fs/cgroup/memory"),
    controllers="memory",
    limit="memory.limit_in_bytes",
    swap_limit="memory.memsw.limit_in_bytes",
    usage="memory.usage_in_bytes",
    events="memory.oom_control",
    with_swap=True,
)
V2: Final = Version(
    root=Path("/sys/fs/cgroup"),
    controllers="",
    limit="memory.max",
    swap_limit="memory.swap.max",
    usage="memory.current",
    events="memory.events",
    with_swap=False,
)


class MemoryGroup:
    """Processes that share a limit of memory, and have no swap beside it."""

    def __init__(self, folder: Path, version: Version) -> None:
        self._folder = folder
        self._version = version

    def take(self, pid: int) -> None:
        """Have a process belong to it; what that one asked for before is not counted."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def allow(self, more: int) -> None:
        """Limit it to so many bytes more than it has in use now."""
        most = more + int((self._folder / self._version.usage).read_text())
        (self._folder / self._version.limit).write_text(str(most))
        swap_limit = self._folder / self._version.swap_limit
        if swap_limit.exists():
            swap_limit.write_text(str(most if self._version.with_swap else 0))

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has killed for their memory."""
        lines = (self._folder / self._version.events).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def remove(self) -> None:
        """Take it away, with the processes that are left in it."""
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        eventually(self._removed)

    def _removed(self) -> bool:
        with suppress(OSError):  # the last of them is not quite gone
            self._folder.rmdir()
        return not self._folder.exists()


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A new group without a limit yet; skips the test where we may not make one."""
    group = next(_made(), None)
    if group is None:
        pytest.skip("needs the right to make a cgroup that limits memory")
    try:
        yield group
    finally:
        group.remove()


def _made() -> Iterator[MemoryGroup]:
    """A group below our own, or below the nearest above it that shares its memory out."""
    for version in (V1, V2):
        for parent in _ours(version):
            folder = parent / f"sluice-test-{os.getpid()}"
            with suppress(OSError):
                folder.mkdir()
                if (folder / version.limit).exists():
                    yield MemoryGroup(folder, version)
                    return
                folder.rmdir()


def _ours(version: Version) -> list[Path]:
    """The group that we are in, and those above it."""
    memberships = Path("/proc/self/cgroup")  # which only Linux has
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == version.controllers:
            folder = version.root / path.removeprefix("/")
            return [folder, *(each for each in folder.parents if each.is_relative_to(version.root))]
    return []
