"""What `sluice batch run` keeps on disk: the results, and a note of how far they are for certain.

Results are written and synced before the note speaks of them, and the note is replaced as a whole.
So whatever is killed when, the next run cuts the results back to the note and asks for the rest.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from cli.failure import USAGE, Failure


@dataclass(slots=True)
class Note:
    """A batch that was begun, and how much of its results there is."""

    url: str
    """Where."""
    input_sha256: str
    idempotency_key: str
    """Sent again with the same request, it leads to the same batch."""
    request: dict[str, Any]
    """The body of `POST /v1/batches`."""
    batch_id: str | None = None
    """None: whether the request arrived is not known."""
    cursor: int = 0
    """The number of the last result that is written."""
    lines: int = 0
    size: int = 0
    """Bytes of these lines."""


class Output:
    """The results of a batch in a file, and beside it, until all are there, the note."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._note_path = path.with_name(path.name + ".sluice")
        self.note = self._noted()
        """None: nothing was begun."""

    @property
    def begun(self) -> Note:
        """The note of what was begun."""
        assert self.note is not None
        return self.note

    @property
    def empty(self) -> bool:
        """Whether there is nothing in the file."""
        return self._size() == 0

    def begin(self, note: Note) -> None:
        """Note what is about to be submitted, in place of whatever was there."""
        self.note = note
        self._save()
        self._file.truncate(note.size)

    def resume(self) -> None:
        """Cut off what may be torn, or, when something is missing, begin with the first result."""
        if self._size() < self.begun.size:
            self.rewind()
        self._file.truncate(self.begun.size)

    def rewind(self) -> None:
        """Forget all results, to write them anew."""
        note = self.begun
        note.cursor = note.lines = note.size = 0
        self._save()
        self._file.truncate(0)

    def submitted(self, batch_id: str) -> None:
        """Note what the request led to."""
        self.begun.batch_id = batch_id
        self._save()

    def append(self, lines: bytes, cursor: int) -> None:
        """Write whole lines, and note for certain that the results are there up to this number."""
        note = self.begun
        if lines:
            self._file.write(lines)
            self._file.flush()
            os.fsync(self._file.fileno())
        note.cursor = cursor
        note.lines += lines.count(b"\n")
        note.size += len(lines)
        self._save()

    def forget(self) -> None:
        """Remove the note: there is nothing left to do."""
        self._note_path.unlink(missing_ok=True)
        self.note = None

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _noted(self) -> Note | None:
        try:
            found = json.loads(self._note_path.read_bytes())
            return Note(**{each.name: found[each.name] for each in fields(Note)})
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError):
            raise Failure(
                f"{self._note_path} is none of ours, or was changed. Remove it to begin anew.",
                code=USAGE,
            ) from None

    def _save(self) -> None:
        fresh = self._note_path.with_name(f".{self._note_path.name}.new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(self.begun), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._note_path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the name may be gone after a power cut
        finally:
            os.close(folder)


@contextmanager
def opened(path: Path) -> Iterator[Output]:
    """The only `sluice batch run` with this output. Left without a note, an empty file goes.

    Raises `Failure` when it cannot be written, or when another one writes there.
    """
    try:
        if path.exists() and not path.is_file():
            raise Failure(f"{path} is no file; results have to be in one.", code=USAGE)
        file = path.open("ab")
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=USAGE) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"Another `sluice batch run` writes to {path}.", code=USAGE) from None
        output = Output(path, file)
        try:
            yield output
        finally:
            if output.note is None and output.empty:
                path.unlink()
