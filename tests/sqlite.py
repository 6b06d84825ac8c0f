"""SQLite databases for tests: migrated once a run, and copied."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from shared import revisions


def fresh(directory: Path) -> str:
    """The URL of a migrated, empty database: `sluice.db` in that directory."""
    path = directory / "sluice.db"
    path.write_bytes(_migrated())
    return f"sqlite:///{path}"


@cache
def _migrated() -> bytes:
    with TemporaryDirectory(prefix="sluice-sqlite-") as directory:
        path = Path(directory) / "sluice.db"
        revisions.migrate(f"sqlite:///{path}")
        # Nothing may be left in the write-ahead log, which is not copied.
        assert [path] == list(path.parent.iterdir())
        return path.read_bytes()
