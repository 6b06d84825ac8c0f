"""Rows of files: shown from completion until they expire, then gone with their bytes."""

from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, col, select, update

from shared import accounts, clock, file_retention, files
from shared.db import Transactions
from shared.errors import NotFound
from shared.storage import Storage
from shared.tables import Batch, File
from tests.factories import HOUR, Sessions

DAY = 24 * HOUR


def begun(session: Session) -> str:
    """An upload under way."""
    return files.begin(session, accounts.ensure(session, "ours").id, "in.jsonl", files.BATCH)


def completed(session: Session, **changes: Any) -> File:
    """A file that is complete."""
    given = {"size": 9, "lines": 1, "problem": None, "kept_ms": HOUR, **changes}
    return files.complete(session, begun(session), **given)


def shown(session: Session, **filters: Any) -> list[str]:
    """Ids of the files that their owner sees."""
    asked = {"purpose": None, "newest_first": True, "after": None, "limit": 10, **filters}
    account_id = accounts.ensure(session, "ours").id
    return [file.id for file in files.page(session, account_id, **asked)[0]]


def aged(session: Session, file_id: str) -> None:
    """Let a file's time be up."""
    done = update(File).where(col(File.id) == file_id)
    session.execute(done.values(expires_at=clock.now() - 1_000))


def test_an_upload_is_shown_when_it_is_complete(sessions: Sessions) -> None:
    """Not before, and not when its time is up; it can be completed once."""
    with sessions() as session:
        file_id = begun(session)
        account_id = accounts.ensure(session, "ours").id
        assert shown(session) == []
        with pytest.raises(NotFound):
            files.find(session, account_id, file_id)

        terms: Any = {"size": 9, "lines": 1, "problem": None, "kept_ms": HOUR}
        file = files.complete(session, file_id, **terms)
        assert (file.status, file.bytes, file.lines) == ("processed", 9, 1)
        assert file.expires_at == file.created_at + HOUR
        assert shown(session) == [file_id]
        with pytest.raises(NotFound):
            files.complete(session, file_id, **terms)

        aged(session, file_id)
        session.expire_all()
        assert shown(session) == []
        with pytest.raises(NotFound):
            files.find(session, account_id, file_id)


def test_an_upload_that_was_given_up_expires_after_a_day(sessions: Sessions) -> None:
    """Nobody has to look for it."""
    with sessions() as session:
        file = session.get_one(File, begun(session))
        assert file.expires_at is not None
        assert file.expires_at - file.created_at in range(DAY, DAY + 10_000)


def test_a_cursor_may_name_a_deleted_file(sessions: Sessions) -> None:
    """Pages go on where they were, in both directions."""
    with sessions() as session:
        made = [completed(session).id for _ in range(4)]
        files.forget(session, [made[1]])

        assert shown(session, after=made[1]) == [made[0]]
        assert shown(session, after=made[1], newest_first=False) == made[2:]


@pytest.mark.anyio
async def test_what_has_expired_goes_with_its_bytes(sessions: Sessions, tmp_path: Path) -> None:
    """In steps, and also what never was complete; not what an open batch still reads."""
    folder = tmp_path / "files"
    storage = Storage(str(folder))
    with sessions() as session:
        kept, read, *old = [completed(session).id for _ in range(file_retention.AT_ONCE + 5)]
        old.append(begun(session))
        for file_id in (read, *old):
            aged(session, file_id)
        batch: dict[str, Any] = {"request_id": "req_1", "endpoint": "/v1/chat/completions"}
        account_id = accounts.ensure(session, "ours").id
        session.add(Batch(id="batch_1", account_id=account_id, input_file_id=read, **batch))
    for file_id in (kept, read, *old[:3]):
        await storage.put(file_id, b"bytes")
        await storage.put(file_id + files.REPORT, b"{}")

    tx = Transactions(sessions.engine)
    await file_retention.enforce(tx, storage)
    with sessions() as session:
        assert set(session.exec(select(File.id))) == {kept, read}
        names = {name for file_id in (kept, read) for name in (file_id, file_id + files.REPORT)}
        assert {path.name for path in folder.iterdir()} == names
        session.get_one(Batch, "batch_1").ended_at = clock.now()

    await file_retention.enforce(tx, storage)
    tx.close()
    with sessions() as session:
        assert set(session.exec(select(File.id))) == {kept}


@pytest.mark.anyio
async def test_a_row_outlives_its_bytes(sessions: Sessions, tmp_path: Path) -> None:
    """A storage that is away costs a run, and leads to no bytes that nobody knows of."""
    (tmp_path / "files").touch()
    with sessions() as session:
        aged(session, completed(session).id)
    tx = Transactions(sessions.engine)

    await file_retention.enforce(tx, Storage(str(tmp_path / "files")))
    with sessions() as session:
        assert len(session.exec(select(File.id)).all()) == 1

    (tmp_path / "files").unlink()
    await file_retention.enforce(tx, Storage(str(tmp_path / "files")))
    tx.close()
    with sessions() as session:
        assert session.exec(select(File.id)).all() == []
