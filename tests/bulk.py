"""Batches as callers send and see them."""

import json
from typing import Any

import httpx
import openai

from tests.stack import eventually

ENDPOINT: Any = "/v1/chat/completions"
ENDED = {"completed", "failed", "cancelled", "expired"}
Object = dict[str, Any]


def line(number: int, model: str = "test", **changes: Any) -> Object:
    """A line of a batch's input."""
    body = {"model": model, "messages": [{"role": "user", "content": f"Number {number}"}]}
    good = {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT}
    return {**good, "body": {**body, **changes}}


def lines(many: int, model: str = "test", **changes: Any) -> list[Object]:
    """So many of them."""
    return [line(number, model, **changes) for number in range(many)]


def jsonl(*lines: Object) -> bytes:
    """An input."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def parsed(content: str) -> list[Object]:
    """The lines of an answer, without the blank ones that keep it awake."""
    return [json.loads(each) for each in content.splitlines() if each]


def uploaded(client: openai.OpenAI, content: bytes) -> str:
    """The id of a file."""
    return client.files.create(file=("in.jsonl", content), purpose="batch").id


def submitted(http: httpx.Client, *lines: Object, **terms: Any) -> Object:
    """A batch of these lines."""
    answer = http.post("/v1/batches", json={"requests": list(lines), **terms})
    assert answer.status_code == 200, answer.text
    batch: Object = answer.json()
    return batch


def shown(http: httpx.Client, batch: Object) -> Object:
    """The batch as it is now."""
    found: Object = http.get(f"/v1/batches/{batch['id']}").json()
    return found


def ended(
    http: httpx.Client, batch: Object, status: str = "completed", *, within: float = 60.0
) -> Object:
    """The batch once it has ended, and as it should."""

    def look() -> Object | None:
        found = shown(http, batch)
        return found if found["status"] in ENDED else None

    found = eventually(look, within)
    assert found["status"] == status, found
    return found
