"""A batch's line as its output and error files have it: OpenAI's JSON, one line each."""

from dataclasses import replace
from typing import Any, Final

import orjson

from shared import ids
from shared.batch_progress import NEVER_RAN
from shared.batch_results import Line
from shared.errors import Fault
from shared.lifecycle import JobStatus

STOPPED: Final = {
    ("expired", False): "This request could not be executed before the completion window expired.",
    ("cancelled", False): "This request was cancelled before it ran.",
    ("cancelled", True): "This request was cancelled while it ran.",
}
"""What became of a line, by its status and whether it ran."""
GONE: Final = {
    "code": "content_expired",
    "message": "The response was kept long enough and deleted.",
}


def rendered(line: Line) -> bytes:
    """One line of a file, with its newline. A stored completion stands in it byte for byte."""
    if line.status == JobStatus.COMPLETED:
        if line.response is None:
            return _line(line, b"null", GONE)
        return _line(line, _response(line, 200, line.response), None)
    if line.status == JobStatus.FAILED:
        fault = Fault(**(line.error or {}))
        return _line(line, _response(line, fault.status, _dumped({"error": fault.body()})), None)
    message = STOPPED[line.status, line.attempt > 0]
    return _line(line, b"null", {"code": NEVER_RAN[line.status], "message": message})


def size(line: Line) -> int:
    """Bytes of the same, for a line that was read without its response."""
    if line.status != JobStatus.COMPLETED or line.size is None:
        return len(rendered(line))
    return len(rendered(replace(line, response=b""))) + line.size


def _response(line: Line, status: int, body: bytes) -> bytes:
    return b'{"status_code":%d,"request_id":%s,"body":%s}' % (
        status,
        _dumped(line.request_id),
        body,
    )


def _line(line: Line, response: bytes, error: dict[str, str] | None) -> bytes:
    return b'{"id":%s,"custom_id":%s,"response":%s,"error":%s}\n' % (
        _dumped(ids.LINE + line.id),
        _dumped(line.custom_id),
        response,
        _dumped(error),
    )


def _dumped(value: Any) -> bytes:
    return orjson.dumps(value)
