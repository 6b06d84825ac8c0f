"""A folder and a bucket keep files alike: whole or not at all, in parts, until they are deleted."""

import os
import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from shared.errors import NotFound, Unavailable
from shared.storage import PART, Storage
from tests.fakes.bucket import Bucket

CONTENT = bytes(range(256)) * 48 * 1024
"""Twelve megabytes: more than two parts."""


@pytest.fixture(params=["folder", "bucket"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Storage, Callable[[], set[str]]]]:
    """A storage, and what is in it, also of what has only been begun."""
    if request.param == "folder":
        folder = tmp_path / "home" / "files"
        yield Storage(str(folder)), lambda: {path.name for path in folder.glob("*")}
        return
    with Bucket() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        yield (
            Storage("s3://bucket/some/prefix"),
            lambda: {Path(key).name for key in {**bucket.objects, **bucket.parts}},
        )


async def written(storage: Storage, name: str, content: bytes) -> None:
    """An object that came in pieces."""
    async with storage.writing(name) as write:
        for at in range(0, len(content), PART // 3):
            await write(content[at : at + PART // 3])


@pytest.mark.anyio
async def test_what_was_written_can_be_read(
    place: tuple[Storage, Callable[[], set[str]]],
) -> None:
    """As a whole and in part; what was deleted is gone, and can be deleted again."""
    storage, names = place
    await written(storage, "file-a", CONTENT)
    await written(storage, "file-b", b"")
    await storage.put("file-a.report", b"{}")

    assert await storage.read("file-a") == CONTENT
    assert await storage.read("file-b") == b""
    assert await storage.read("file-a.report") == b"{}"
    some = await storage.open("file-a", (300, 900))
    assert b"".join([piece async for piece in some]) == CONTENT[300:900]
    for _ in range(2):
        await storage.delete("file-a", "file-a.report", "file-b")
        with pytest.raises(NotFound):
            await storage.read("file-a")
    assert names() == set()


@pytest.mark.anyio
async def test_what_breaks_off_never_appears(
    place: tuple[Storage, Callable[[], set[str]]],
) -> None:
    """Nor does any part of it stay."""
    storage, names = place

    async def broken_off() -> None:
        async with storage.writing("file-a") as write:
            for _ in range(3):
                await write(b"x" * PART)
            assert names()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await broken_off()
    assert names() == set()


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """Once it is old; whole files are left alone."""
    storage = Storage(str(tmp_path))
    for name in ("file-a", "file-b#1", "file-c#1"):
        (tmp_path / name).touch()
    for name in ("file-a", "file-b#1"):
        os.utime(tmp_path / name, (0, 0))

    assert storage.sweep(timedelta(days=1)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file-a", "file-c#1"}
    assert Storage(str(tmp_path / "none")).sweep(timedelta()) == 0


@pytest.mark.anyio
async def test_a_folder_is_made_when_it_is_needed(tmp_path: Path) -> None:
    """Readable by nobody else; a service that keeps no files needs none."""
    storage = Storage(str(tmp_path / "a" / "files"))
    assert not (tmp_path / "a").exists()

    await storage.put("file-a", b"")
    assert stat.S_IMODE((tmp_path / "a" / "files").stat().st_mode) == 0o700


@pytest.mark.anyio
async def test_a_storage_that_refuses_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is asked."""
    (tmp_path / "in-the-way").touch()
    with Bucket() as bucket:
        bucket.away = True
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        for storage in (Storage("s3://bucket"), Storage(str(tmp_path / "in-the-way"))):
            with pytest.raises(Unavailable):
                await written(storage, "file-a", CONTENT)
            with pytest.raises(Unavailable):
                await storage.open("file-a")
            with pytest.raises(Unavailable):
                await storage.put("file-a", b"")
