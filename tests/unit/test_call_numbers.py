"""Tool calls of servers that do not number them, as SDKs must see them."""

import json
from typing import Any

import pytest

from workers.upstreams.openai_stream import ChatEvents


def part(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    """One part of a tool call."""
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return {"function": function, **more}


@pytest.mark.parametrize(
    "parts, numbers",
    [
        ([part("f", "1", id="a", index=0), part("g", "2", id="b", index=1)], [0, 1]),
        ([part("f", "1", id="a", index=1), part("g", "2", id="b", index=2)], [1, 2]),
        ([part("g", "2", id="b", index=1), part("f", "1", id="a", index=0)], [1, 0]),
        ([part("f", "", id="a", index=0), part("f", "1", id="a", index=0)], [0, 0]),
        ([part("f", "", id="a", index=0), part("", "1", id="", index=0)], [0, 0]),
        ([part("f", "1", id="a", index=0), part("g", "2", id="b", index=0)], [0, 1]),
        ([part("f", "1", id="a"), part("g", "2", id="b")], [0, 1]),
        ([part("f", "1"), part("f", "2")], [0, 1]),
        ([part("f", "", id="a"), part("", "1"), part("g", "", id="b")], [0, 0, 1]),
        ([part("f", "", id="a"), part("g", "", id="b"), part("", "1", id="a")], [0, 1, 0]),
    ],
)
def test_each_call_has_one_number_of_its_own(
    parts: list[dict[str, Any]], numbers: list[int]
) -> None:
    """Left as it is where the server did it right; by id and name where it gave none, or all 0."""
    reader = ChatEvents(1, None)
    said = []
    for one in parts:
        chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [one]}}]}
        said += reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    told = [json.loads(line)["choices"][0] for delta in said for line in delta.lines]
    heard = [choice["delta"]["tool_calls"][0] for choice in told]
    assert [call["index"] for call in heard] == numbers
