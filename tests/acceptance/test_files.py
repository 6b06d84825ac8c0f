"""OpenAI's files through its own SDK: whole, in parts, page by page, broken off, too large."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import psutil
import pytest
from sqlmodel import Session, select

from shared import db, queue
from shared.tables import File
from tests.sdks import SDKS, Application
from tests.stack import Stack, eventually
from tests.valkey import free_port

pytestmark = pytest.mark.parametrize("service", ["sqlite"], indirect=True, scope="module")
MEGABYTE = 1024 * 1024
BOUNDARY = "the-boundary"


def line(number: int, **changes: Any) -> str:
    """A good line of a batch's input, but for the changes."""
    body = {"model": "test", "messages": [{"role": "user", "content": f"Number {number}"}]}
    good = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**good, "body": body, **changes})


def lines(count: int) -> bytes:
    """A good input."""
    return "\n".join(line(number) for number in range(count)).encode()


def fresh(service: Stack, name: str) -> openai.OpenAI:
    """The SDK for an account that has no files yet."""
    return service.client(service.mint(name))


def upload(client: openai.OpenAI, content: bytes, **terms: Any) -> Any:
    """Upload an input."""
    return client.files.create(file=("in.jsonl", content), purpose="batch", **terms)


def stored(service: Stack) -> set[str]:
    """What is in the folder of files."""
    return {path.name for path in (service.home / "files").glob("*")}


def rows(service: Stack) -> set[str]:
    """Ids of all rows of files, also of those that nobody is shown."""
    engine = db.connect(service.database_url)
    with Session(engine) as session:
        found = set(session.exec(select(File.id)))
    engine.dispose()
    return found


def form(name: str, before: str = "") -> bytes:
    """A form up to its file's first byte."""
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    return f'{before}{part}; filename="in.jsonl"\r\n\r\n'.encode()


PURPOSE = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
END = f"\r\n--{BOUNDARY}--\r\n".encode()
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@contextmanager
def begun_upload(service: Stack, port: int) -> Iterator[None]:
    """A connection that stays in the middle of an upload."""
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: sluice\r\nContent-Length: 90000000\r\n"
        f"Authorization: Bearer {service.key}\r\n"
        f"Content-Type: {MULTIPART['content-type']}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + form("file", before=PURPOSE) + b"x" * 6 * MEGABYTE)
        yield


def test_the_sdk_uploads_reads_and_deletes(service: Stack) -> None:
    """The object is OpenAI's, the bytes are those that were sent, and what is deleted is gone."""
    client, content = fresh(service, "round trip"), lines(3)

    file = upload(client, content)
    assert (file.object, file.purpose, file.filename) == ("file", "batch", "in.jsonl")
    assert (file.bytes, file.status) == (len(content), "processed")
    assert file.expires_at == file.created_at + 30 * 24 * 3600
    assert client.files.wait_for_processing(file.id).id == file.id
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content

    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert file.id not in stored(service) | rows(service)


@pytest.mark.parametrize("sdk", SDKS)
def test_every_sdk_knows_what_a_file_is(service: Stack, sdk: str) -> None:
    """It uploads, waits, turns pages, reads and deletes, whatever its version."""
    names, content = ["a.jsonl", "größer.jsonl", "c.jsonl"], lines(2).decode()
    there = {"base_url": f"{service.url}/v1", "key": service.mint(sdk)}
    with Application(sdk) as application:
        application.ask("files", **there, names=names, content=content)
        seen = application.answer()

    assert "raised" not in seen, seen
    assert (seen["file"]["status"], seen["file"]["filename"]) == ("processed", "a.jsonl")
    assert (seen["names"], seen["content"]) == (names[::-1], content)
    assert seen["deleted"] == {"id": seen["file"]["id"], "object": "file", "deleted": True}


def test_the_sdk_pages_through_files(service: Stack) -> None:
    """In both orders, whatever the size of a page, and by purpose."""
    client = fresh(service, "pages")
    made = [upload(client, lines(1)).id for _ in range(5)]

    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    assert [file.id for file in client.files.list(purpose="batch")] == made[::-1]
    assert list(client.files.list(purpose="batch_output")) == []
    page = service.http(client.api_key).get("/v1/files").json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (made[4], made[0], False)


@pytest.mark.parametrize(
    "query, param",
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("purpose=%00", "purpose"),
    ],
)
def test_a_wrong_query_is_refused(service: Stack, query: str, param: str) -> None:
    """With the name of what is wrong."""
    answer = service.http().get(f"/v1/files?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_file_expires_when_its_owner_says(service: Stack) -> None:
    """Between an hour and thirty days after it came."""
    client = fresh(service, "expiry")
    file = upload(client, lines(1), expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600

    with pytest.raises(openai.BadRequestError) as refused:
        upload(client, lines(1), expires_after={"anchor": "created_at", "seconds": 3599})
    assert refused.value.param == "expires_after[seconds]"
    assert [kept.id for kept in client.files.list()] == [file.id]


def test_other_accounts_know_nothing_of_a_file(service: Stack) -> None:
    """Not its row, not its bytes, and they cannot delete it."""
    file, stranger = upload(fresh(service, "owner"), lines(1)), fresh(service, "stranger")

    for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    assert list(stranger.files.list()) == []
    assert file.id in stored(service)


@pytest.mark.parametrize(
    "wanted, status, part, content_range",
    [
        ("bytes=0-4", 206, slice(0, 5), "bytes 0-4/{size}"),
        ("bytes=10-", 206, slice(10, None), "bytes 10-{last}/{size}"),
        ("bytes=-3", 206, slice(-3, None), "bytes {third}-{last}/{size}"),
        ("bytes=5-999999", 206, slice(5, None), "bytes 5-{last}/{size}"),
        ("bytes=999999-", 416, None, "bytes */{size}"),
        ("bytes=0-1,3-4", 200, slice(None), None),
        ("lines=1-2", 200, slice(None), None),
    ],
)
def test_a_part_of_a_file_can_be_read(
    service: Stack, wanted: str, status: int, part: slice | None, content_range: str | None
) -> None:
    """One range at a time; a header that we need not understand is ignored."""
    content = lines(2)
    file = upload(service.client(), content)
    answer = service.http().get(f"/v1/files/{file.id}/content", headers={"range": wanted})

    size = len(content)
    numbers = {"size": size, "last": size - 1, "third": size - 3}
    shown = content_range and content_range.format(**numbers)
    assert (answer.status_code, answer.headers.get("content-range")) == (status, shown)
    if part is not None:
        assert answer.content == content[part]


def test_a_part_of_another_file_is_not_mixed_with_this(service: Stack) -> None:
    """`If-Range` asks for the whole when it is no longer the file that the client knows."""
    file = upload(service.client(), lines(1))
    where, first = f"/v1/files/{file.id}/content", {"range": "bytes=0-0"}
    tag = service.http().get(where).headers["etag"]

    known = service.http().get(where, headers={**first, "if-range": tag})
    assert (known.status_code, known.content) == (206, b"{")
    other = service.http().get(where, headers={**first, "if-range": '"other"'})
    assert (other.status_code, other.content) == (200, lines(1))


def test_a_wrong_input_is_taken_and_says_so(service: Stack) -> None:
    """As OpenAI does it: the upload succeeds, and the file tells its first problem."""
    client = fresh(service, "wrong input")
    content = f"{line(1)}\n{line(1)}\nnonsense".encode()
    file = upload(client, content)

    assert file.status == "error"
    assert file.status_details == (
        "Line 2: The 'custom_id' 'line-1' is in an earlier line already. (2 problems in all.)"
    )
    assert client.files.wait_for_processing(file.id).status == "error"
    report = json.loads((service.home / "files" / f"{file.id}.report").read_bytes())
    assert report["problems"] == 2
    assert [(each["line"], each["code"]) for each in report["errors"]] == [
        (2, "duplicate_custom_id"), (3, "invalid_json_line"),
    ]  # fmt: skip
    client.files.delete(file.id)
    assert not {file.id, f"{file.id}.report"} & stored(service)


@pytest.mark.parametrize(
    "data, files, status, param",
    [
        ({"purpose": "vision"}, {"file": b"{}"}, 400, "purpose"),
        ({}, {"file": b"{}"}, 400, "purpose"),
        ({"purpose": "batch"}, {"other": b"{}"}, 400, "file"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, {"file": b"{}"}, 400,
         "expires_after[anchor]"),
        ({"purpose": "batch"}, None, 415, None),
    ],
)  # fmt: skip
def test_a_wrong_form_leaves_nothing_behind(
    service: Stack, data: Any, files: Any, status: int, param: str | None
) -> None:
    """It is refused with the name of the field."""
    before = stored(service), rows(service)
    answer = service.http().post("/v1/files", data=data, files=files)

    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert (stored(service), rows(service)) == before


@pytest.mark.parametrize(
    "headers, status", [(MULTIPART, 400), ({"content-type": "application/octet-stream"}, 415)]
)
def test_who_sends_much_of_something_else_is_told(
    service: Stack, headers: dict[str, str], status: int
) -> None:
    """The answer comes through although the client is still sending."""
    much = b"x" * 30 * MEGABYTE
    assert service.http().post("/v1/files", content=much, headers=headers).status_code == status


def test_the_file_may_come_before_its_purpose(service: Stack) -> None:
    """As `curl -F file=@in.jsonl -F purpose=batch` has it."""
    body = form("file") + lines(1) + b"\r\n" + PURPOSE.encode() + END[2:]
    answer = service.http().post("/v1/files", content=body, headers=MULTIPART)
    assert (answer.status_code, answer.json()["status"]) == (200, "processed")


def test_memory_does_not_grow_with_an_upload(service: Stack) -> None:
    """Sixty megabytes go through an api process that never has more than a few of them."""
    api = next(one for one in service._processes if one.log.name.startswith("api"))
    memory = psutil.Process(api.pid)
    upload(service.client(), lines(1))  # what is only loaded once
    before, most = memory.memory_info().rss, 0
    padding = "x" * 30_000

    def body() -> Iterator[bytes]:
        nonlocal most
        yield form("file", before=PURPOSE)
        for number in range(2_000):
            messages = [{"role": "user", "content": padding}]
            asked = {"model": "test", "messages": messages}
            yield line(number, body=asked).encode() + b"\n"
            most = max(most, memory.memory_info().rss)
        yield END

    answer = service.http().post("/v1/files", content=body(), headers=MULTIPART, timeout=120)

    assert answer.json()["status"] == "processed", answer.text
    assert answer.json()["bytes"] > 60 * 1000 * 1000
    assert most - before < 40 * MEGABYTE
    service.client().files.delete(answer.json()["id"])


def test_who_leaves_in_the_middle_leaves_nothing(service: Stack) -> None:
    """Neither a row nor a byte."""
    before = stored(service), rows(service)
    with begun_upload(service, service.port):
        eventually(lambda: rows(service) - before[1], 30)
        eventually(lambda: stored(service) - before[0], 30)

    eventually(lambda: (stored(service), rows(service)) == before, 30)


@pytest.fixture
def small(service: Stack) -> Iterator[str]:
    """The address of an api that takes files of up to a megabyte."""
    port = free_port()
    process = service.api(port, SLUICE_FILE_LIMIT=str(MEGABYTE))
    yield f"http://127.0.0.1:{port}"
    process.stop()


def test_a_file_over_the_limit_is_413(service: Stack, small: str) -> None:
    """Whether it is a little over or far, whoever sends it sees the answer; nothing is kept."""
    before = stored(service), rows(service)
    ours = {"authorization": f"Bearer {service.key}"}
    for size in (MEGABYTE + 1, 3 * MEGABYTE):
        body = form("file", before=PURPOSE) + b"x" * size + END
        headers = {**MULTIPART, **ours}
        answer = httpx.post(f"{small}/v1/files", content=body, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    exact = form("file", before=PURPOSE) + b" " * MEGABYTE + END
    whole = httpx.post(f"{small}/v1/files", content=exact, headers={**MULTIPART, **ours})
    assert whole.json()["status_details"] == "There is no request in this file."
    service.client().files.delete(whole.json()["id"])

    assert (stored(service), rows(service)) == before


def test_a_storage_that_is_away_is_503(service: Stack) -> None:
    """It is said to be so, and the file is not shown."""
    (service.home / "in-the-way").touch()
    port = free_port()
    api = service.api(port, SLUICE_FILES=str(service.home / "in-the-way"))
    client = fresh(service, "no storage")
    sent: Any = {"files": {"file": lines(1)}, "data": {"purpose": "batch"}}
    headers = {"authorization": f"Bearer {client.api_key}"}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/files", headers=headers, **sent)
    api.stop()

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
    assert list(client.files.list()) == []


def test_what_a_killed_upload_leaves_is_cleaned_up(service: Stack) -> None:
    """Nobody sees it, and a day later it is gone."""
    before = stored(service), rows(service)
    port = free_port()
    api = service.api(port)
    with begun_upload(service, port):
        [file_id] = eventually(lambda: rows(service) - before[1], 30)
        [staged] = eventually(lambda: stored(service) - before[0], 30)
        api.kill()
    assert service.http().get(f"/v1/files/{file_id}").status_code == 404
    assert file_id not in {file.id for file in service.client().files.list()}

    os.utime(service.home / "files" / staged, (0, 0))
    engine = db.connect(service.database_url)
    with Session(engine) as session, session.begin():
        session.get_one(File, file_id).expires_at = 1
    engine.dispose()
    celery = queue.connect(service.redis_url)
    celery.send_task(queue.PRUNE, queue=queue.MAINTENANCE)
    eventually(lambda: (stored(service), rows(service)) == before, 30)
    celery.close()
