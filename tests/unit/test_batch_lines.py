"""From the bytes of a batch's input to its lines, and from a line to a job."""

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pytest

from shared import batch_lines
from shared.batch_lines import BOM, Lines, plan
from shared.lifecycle import Lane
from shared.tables import Batch
from tests.batches import ENDPOINT, TERMS, line

INPUT = BOM + b"first\n\n  \r\nsecond\r\n" + b"third" * 100 + b"\nlast"
LINES = [BOM + b"first", b"second\r", b"third" * 100, b"last"]
BATCH = Batch(
    id="batch_1",
    account_id="acct_1",
    key_id="key_1",
    request_id="req_1",
    endpoint=ENDPOINT,
    expires_at=9,
)


async def pieces(size: int, content: bytes = INPUT) -> AsyncIterator[bytes]:
    """The input, so many bytes at a time."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_lines_are_read_however_they_are_cut(size: int) -> None:
    """Blank ones are none, and the last needs no newline."""
    lines = Lines(pieces(size))

    assert [await lines.read(3), await lines.read(3), await lines.read(3)] == [
        LINES[:3],
        LINES[3:],
        [],
    ]
    assert lines.at == 4


@pytest.mark.anyio
@pytest.mark.parametrize("read", range(6))
async def test_an_input_is_read_on_where_another_stopped(read: int) -> None:
    """What came before is passed over; past the end there is nothing."""
    lines = Lines(pieces(7))
    await lines.skip(read)

    assert await lines.read(10) == LINES[read:]


@pytest.mark.anyio
async def test_only_so_many_bytes_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that has more comes alone."""
    monkeypatch.setattr(batch_lines, "MOST_BYTES", 100)
    lines = Lines(pieces(50))

    assert [await lines.read(10), await lines.read(10)] == [LINES[:3], LINES[3:]]


def test_a_line_becomes_a_job() -> None:
    """Its body as a request of its own would be sent; what it may cost is owed, not held."""
    webhook = {"url": "https://app.example/hook", "secret": None}
    sent = line(7, model="dear", store=True, metadata={"a": "b"}, webhook=webhook, temperature=0.5)

    planned = plan(BOM + sent, 7, BATCH, replace(TERMS, max_attempts=5))

    new = planned.job
    assert planned.fault is None
    assert orjson.loads(new.body) == {
        "model": "dear",
        "messages": [{"role": "user", "content": "Hi 7"}],
        "temperature": 0.5,
    }
    assert (new.batch_id, new.custom_id, new.line) == ("batch_1", "line 7", 7)
    assert (new.account_id, new.key_id, new.request_id) == ("acct_1", "key_1", "req_1")
    assert (new.lane, new.background, new.hinted, new.expires_at) == (Lane.BATCH, True, False, 9)
    assert (new.metadata, new.webhook) == ({"a": "b"}, {"url": "https://app.example/hook"})
    assert (new.hold, new.hold_due > 0, new.max_attempts) == (0, True, 5)


def test_lines_may_be_cheaper() -> None:
    """Both what is held and what is charged; for nothing, nothing is held."""
    whole, half, free = (
        plan(line(1, model="dear"), 1, BATCH, replace(TERMS, price=Decimal(part))).job
        for part in ("1", "0.5", "0")
    )

    assert (half.hold_due, free.hold_due) == (whole.hold_due / 2, 0)
    assert [Decimal(price) for price in (half.prices or {})["dear"]] == [1000, 1000, 1000, 2000]


@pytest.mark.parametrize(
    "body, code",
    [
        ({"model": "gone"}, "model_not_found"),
        ({"model": "plain", "seed": 3}, "unsupported_parameter"),
    ],
)
def test_a_line_may_ask_for_what_is_no_longer_on_offer(body: dict[str, Any], code: str) -> None:
    """It becomes a job all the same, and comes with the reason why that cannot run."""
    planned = plan(line(1, **body), 1, BATCH, TERMS)

    assert planned.fault is not None
    assert planned.fault.code == code
    assert (planned.job.custom_id, planned.job.hold_due) == ("line 1", 0)
