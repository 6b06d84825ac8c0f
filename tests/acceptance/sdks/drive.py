"""An application of openai-python, of whatever version is on the path.

Reads what to do as JSON, one form a line, and prints what came of it, one line each:

    {"form": "create", "base_url": "http://127.0.0.1:8080/v1", "key": "ak_…", "body": {…}}
"""

import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

ENDED = {"completed", "failed", "cancelled", "expired"}
OURS = {"background", "on_disconnect"}
"""Fields of the body that the SDK does not know."""

Asked = dict[str, Any]


def create(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """`chat.completions.create`, held or in the background."""
    raw = client.chat.completions.with_raw_response.create(**_arguments(asked))
    seen["status"] = raw.http_response.status_code
    seen["headers"] = dict(raw.headers)
    seen["completion"] = _shown(raw.parse())


def stream(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """The same with `stream=True`."""
    chunks = client.chat.completions.create(**_arguments(asked), stream=True)
    _read(chunks, seen)


def resume(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """A stream from after a chunk on; the SDK has no method for it, but a way."""
    chunks = client.get(
        f"/chat/completions/{asked['id']}",
        cast_to=ChatCompletion,
        stream=True,
        stream_cls=Stream[ChatCompletionChunk],
        options={"params": {"stream": "true", "starting_after": asked["after"]}},
    )
    _read(chunks, seen)


def retrieve(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """One completion, as it is now."""
    seen["completion"] = _shown(client.chat.completions.retrieve(asked["id"]))


def poll(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """One completion, once it has ended."""
    status, seen["polls"] = "", 0
    while status not in ENDED:
        found = client.chat.completions.retrieve(asked["id"], extra_headers={"Prefer": "wait=5"})
        seen["polls"] += 1
        seen["completion"] = _shown(found)
        status = seen["completion"]["status"]


def cancel(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """Stop one; as all POSTs of the SDK without a body, it says that its body is JSON."""
    found = client.post(f"/chat/completions/{asked['id']}/cancel", cast_to=ChatCompletion)
    seen["completion"] = _shown(found)


def listed(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """Every completion of the list, page by page."""
    seen["ids"] = [found.id for found in client.chat.completions.list(**asked["query"])]


def update(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """Replace the metadata."""
    found = client.chat.completions.update(asked["id"], metadata=asked["metadata"])
    seen["completion"] = _shown(found)


def delete(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """Delete one."""
    seen["deleted"] = _shown(client.chat.completions.delete(asked["id"]))


def messages(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """The messages that were sent, page by page."""
    pages = client.chat.completions.messages.list(asked["id"], limit=asked["limit"])
    seen["messages"] = [_shown(message) for message in pages]


def models(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """The names of all models, and one of them closely."""
    seen["names"] = [model.id for model in client.models.list()]
    seen["model"] = _shown(client.models.retrieve(asked["name"]))


def files(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """Upload files, wait for the first, list all page by page, read it and delete it."""
    made = [
        client.files.create(file=(name, asked["content"].encode()), purpose="batch")
        for name in asked["names"]
    ]
    seen["file"] = _shown(client.files.wait_for_processing(made[0].id))
    seen["names"] = [file.filename for file in client.files.list(extra_query={"limit": 1})]
    seen["content"] = client.files.content(made[0].id).read().decode()
    seen["deleted"] = _shown(client.files.delete(made[0].id))


def batch(client: OpenAI, asked: Asked, seen: Asked) -> None:
    """Upload an input, make a batch of it, poll it, read its output, list all, cancel another."""
    content = asked["content"].encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    terms: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    found = client.batches.create(input_file_id=file.id, metadata=asked["metadata"], **terms)
    seen["created"] = _shown(found)
    while found.status not in ENDED:
        time.sleep(0.2)
        found = client.batches.retrieve(found.id)
    seen["batch"] = _shown(found)
    if found.output_file_id is not None:
        seen["output"] = client.files.content(found.output_file_id).read().decode()
    other = client.batches.create(input_file_id=file.id, **terms)
    seen["cancelled"] = _shown(client.batches.cancel(other.id))
    seen["ids"] = [each.id for each in client.batches.list(limit=1)]


FORMS: dict[str, Callable[[OpenAI, Asked, Asked], None]] = {
    "create": create,
    "stream": stream,
    "resume": resume,
    "retrieve": retrieve,
    "poll": poll,
    "cancel": cancel,
    "list": listed,
    "update": update,
    "delete": delete,
    "messages": messages,
    "models": models,
    "files": files,
    "batch": batch,
}


def _arguments(asked: Asked) -> Any:
    body = {name: value for name, value in asked["body"].items() if name not in OURS}
    ours = {name: value for name, value in asked["body"].items() if name in OURS}
    headers = {
        name: openai.Omit() if value is None else value
        for name, value in asked.get("headers", {}).items()
    }
    more = {"timeout": asked["timeout"]} if "timeout" in asked else {}
    return {**body, "extra_body": ours, "extra_headers": headers, **more}


def _read(chunks: Stream[ChatCompletionChunk], seen: Asked) -> None:
    seen["chunks"] = []
    for chunk in chunks:
        seen["chunks"].append(_shown(chunk))


def _shown(found: Any) -> Asked:
    shown: Asked = found.model_dump(mode="json", exclude_unset=True)
    return shown


@functools.lru_cache
def _client(base_url: str, key: str) -> OpenAI:
    """The SDK as it is, retries and all."""
    return OpenAI(base_url=base_url, api_key=key)


def perform(asked: Asked) -> Asked:
    """Do one form; a failure, the API's or any other, is told with what was seen until then."""
    seen: Asked = {}
    client = _client(asked["base_url"], asked["key"])
    try:
        FORMS[asked["form"]](client, asked, seen)
    except openai.APIError as error:
        seen["raised"] = {
            "class": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "code": error.code,
            "param": error.param,
            "message": error.message,
        }
    except Exception:
        seen["broke"] = traceback.format_exc()
    return seen


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(perform(json.loads(line))), flush=True)
