"""What the house tests look at: the files of this repository, and the commands they speak of."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "cli", "shared", "workers")


def files() -> list[Path]:
    """Every file that is tracked, or would be with the next `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def modules(*folders: str) -> list[Path]:
    """Every Python module below these folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def shown(path: Path) -> str:
    """A path as a reader of a failed test wants it."""
    return path.relative_to(ROOT).as_posix()


def documents() -> list[Path]:
    """The pages people read."""
    return [path for path in files() if path.suffix == ".md"]


def code_in(page: str) -> Iterator[str]:
    """The lines of a page's code blocks, and its code spans."""
    fenced = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for block in fenced.findall(page):
        yield from block.splitlines()
    rest = fenced.sub("", page)
    yield from (line.strip() for line in rest.splitlines() if line.startswith("    "))
    yield from re.findall(r"`([^`\n]+)`", rest)
