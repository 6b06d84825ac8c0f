"""What each server streams, event by event, and the deltas that each event must become."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UpstreamError
from workers.upstreams.anthropic_stream import MessageEvents
from workers.upstreams.calls import Reader
from workers.upstreams.openai_stream import ChatEvents
from workers.upstreams.protocol import Delta

GOLDEN = Path(__file__).parents[1] / "golden"
READERS: Mapping[str, Callable[[], Reader]] = {
    "anthropic": lambda: MessageEvents(None),
    "openai": lambda: ChatEvents(1, None),
}


def written(said: str | dict[str, Any]) -> bytes:
    """An event, or a line that is none, as the server writes it."""
    if isinstance(said, str):
        return said.encode() + b"\n\n"
    named = f"event: {said['type']}\n" if "type" in said else ""
    return f"{named}data: {json.dumps(said, ensure_ascii=False)}\n\n".encode()


def shown(delta: Delta) -> dict[str, Any]:
    """A delta as its chunk, with the usage that came along."""
    assert len(delta.lines) <= 1
    chunk: dict[str, Any] = json.loads(delta.lines[0]) if delta.lines else {}
    assert chunk.get("choices", []) == delta.choices
    assert {name: chunk[name] for name in chunk if name != "choices"} == (
        delta.extra or {} if delta.lines else {}
    )
    return chunk | ({} if delta.usage is None else {"usage": delta.usage})


def failure_of(reader: Reader) -> UpstreamError | None:
    """How the stream failed, once it has ended here."""
    try:
        assert reader.failure is not None or reader.feed(b"") == []
        reader.check_ending()
    except UpstreamError as error:
        return reader.failure or error
    return reader.failure


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in GOLDEN.glob("*/*.jsonl")],
)
def test_each_event_becomes_the_deltas_written_beside_it(path: Path) -> None:
    """`in` is what the server sends, `out` what comes of it; the last line may be its failure."""
    reader = READERS[path.parent.name]()
    failed: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if "in" not in case:
            failed = case
            continue
        deltas = reader.feed(written(case["in"]))

        assert [shown(delta) for delta in deltas] == case.get("out", []), case["in"]

    error = failure_of(reader)
    assert (error is None) is not bool(failed), error
    if error is not None:
        assert {"error": type(error).__name__, "message": error.message} == failed
