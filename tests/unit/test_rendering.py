"""Lines of output and error files."""

from typing import Any

import orjson
import pytest

from shared.batch_results import Line
from shared.rendering import rendered, size

SAID = b'{"id": "chatcmpl-1",  "spaced":1.0}'
FAULT = {"status": 502, "code": "upstream_error", "type": "upstream_error", "message": "It fell."}
BODY = {
    "error": {
        "message": "It fell.",
        "type": "upstream_error",
        "param": None,
        "code": "upstream_error",
        "retryable": False,
    }
}


def shown(status: str, **fields: Any) -> Line:
    """A line in this status."""
    known: dict[str, Any] = {
        "id": "1",
        "custom_id": 'a "b" ü',
        "line": 1,
        "status": status,
        "attempt": 1,
        "result_number": 1,
        "request_id": "req_1",
        "error": None,
        "completed_at": 1,
        "size": None,
        "response": None,
    }
    return Line(**{**known, **fields})


@pytest.mark.parametrize(
    "line, response, error",
    [
        (
            shown("failed", error=FAULT, size=3, response=b"cut"),
            {"status_code": 502, "request_id": "req_1", "body": BODY},
            None,
        ),
        (shown("expired", attempt=0, error=FAULT), None, "batch_expired"),
        (shown("cancelled", attempt=0), None, "batch_cancelled"),
        (shown("cancelled", size=3, response=b"cut"), None, "batch_cancelled"),
        (shown("completed"), None, "content_expired"),
    ],
)
def test_what_became_of_a_line(line: Line, response: Any, error: str | None) -> None:
    """An upstream's failure is a response; what never ran has none."""
    told = orjson.loads(rendered(line))

    assert (told["id"], told["custom_id"]) == ("batch_req_1", 'a "b" ü')
    assert told["response"] == response
    assert (told["error"] or {}).get("code") == error
    assert size(line) == len(rendered(line))


def test_a_completion_is_there_byte_for_byte() -> None:
    """And its line can be measured without it."""
    text = rendered(shown("completed", response=SAID, size=len(SAID)))

    assert (
        text
        == (
            '{"id":"batch_req_1","custom_id":"a \\"b\\" ü","response":{"status_code":200,'
            '"request_id":"req_1","body":{"id": "chatcmpl-1",  "spaced":1.0}},"error":null}\n'
        ).encode()
    )
    assert size(shown("completed", size=len(SAID))) == len(text)
