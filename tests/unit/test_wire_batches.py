"""What makes a batch, how one looks, and what one would cost."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import openai.types
import pytest

from api.estimates import Estimate, estimate
from api.parse import validate
from api.progress import Progress
from api.wire.batches import BatchChange, BatchCreate, BatchFilters, batch_object, window_seconds
from api.wire.queries import parse_query
from shared.batch_progress import Counts
from shared.errors import InvalidRequest
from shared.tables import Batch
from tests.batches import CATALOG, line

FILE = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}
INLINE = {"requests": [{"custom_id": "a", "body": {}}]}
STATUSES = {"completed", "failed", "expired", "cancelled"}


@pytest.mark.parametrize(
    "window, seconds",
    [
        ("1m", 60),
        ("24h", 86_400),
        ("90m", 5_400),
        ("30d", 2_592_000),
        ("720h", 2_592_000),
        ("0m", None),
        ("31d", None),
        ("99999999d", None),
        ("59s", None),
        ("24", None),
        ("1.5h", None),
        ("-1h", None),
        ("٣h", None),
        ("24h\n", None),
    ],
)
def test_a_window_is_a_minute_to_thirty_days(window: str, seconds: int | None) -> None:
    """In minutes, hours or days."""
    assert window_seconds(window) == seconds


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "input_file_id"),
        ({**FILE, **INLINE}, "requests"),
        ({"requests": []}, "requests"),
        ({"input_file_id": "file-1"}, "endpoint"),
        ({**FILE, "endpoint": "/v1/embeddings"}, "endpoint"),
        ({**FILE, "model": "test"}, "model"),
        ({**INLINE, "completion_window": "31d"}, "completion_window"),
        ({**INLINE, "completion_window": 24}, "completion_window"),
        ({**INLINE, "priority": 10}, "priority"),
        ({**INLINE, "priority": True}, "priority"),
        ({**INLINE, "concurrency": 0}, "concurrency"),
        ({**INLINE, "metadata": {"a": 1}}, "metadata.a"),
        ({**INLINE, "metadata": {str(number): "" for number in range(17)}}, "metadata"),
        (
            {**INLINE, "output_expires_after": {"anchor": "created_at", "seconds": 9}},
            "output_expires_after.seconds",
        ),
        ({**INLINE, "webhook": {"url": "https://a.example", "events": ["x"]}}, "webhook.events[0]"),
        ({**INLINE, "webhook": {"url": "https://a.example", "secret": "x"}}, "webhook.secret"),
        ({**INLINE, "max_cost": 1}, "max_cost"),
    ],
)
def test_a_wrong_request_names_its_field(body: dict[str, Any], param: str) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(InvalidRequest) as refused:
        validate(BatchCreate, body)
    assert refused.value.param == param


def test_a_webhook_hears_of_ends_unless_it_says_otherwise() -> None:
    """Of the batch; that it has begun is told only to who asks."""
    hook = {"url": "https://a.example"}
    asked = validate(BatchCreate, {**INLINE, "webhook": hook})
    assert asked.webhook is not None
    assert set(asked.webhook.events) == {f"batch.{status}" for status in STATUSES}


def test_a_change_is_what_was_sent() -> None:
    """Null takes a limit away, what is absent stays."""
    assert validate(BatchChange, {"concurrency": None}).changes == {"concurrency": None}
    assert validate(BatchChange, {}).changes == {}
    for wrong in ({"priority": None}, {"priority": -1}, {"status": "cancelled"}):
        with pytest.raises(InvalidRequest):
            validate(BatchChange, wrong)


def test_a_list_can_be_of_one_status_and_some_metadata() -> None:
    """The statuses are those of batches, not of jobs."""
    found = parse_query(BatchFilters, [("status", "validating"), ("metadata[a]", "b")])
    assert (found.status, found.metadata) == ("validating", {"a": "b"})
    for wrong in ("queued", "validating,failed"):
        with pytest.raises(InvalidRequest):
            parse_query(BatchFilters, [("status", wrong)])


def shown(**columns: Any) -> dict[str, Any]:
    """A batch of ten lines, as it is shown."""
    row = Batch(
        id="batch_1", account_id="acct_1", request_id="req_1", endpoint="/v1/chat/completions",
        created_at=1_000, expires_at=2_000, **columns,
    )  # fmt: skip
    counts = Counts(total=10, queued=3, running=1, completed=2, failed=1, cancelled=1, expired=2)
    return batch_object(Progress(row, counts, 0.5, None))


def test_a_batch_has_every_field_of_openai() -> None:
    """What is not there is null, and whatever ended without completing has failed."""
    found = shown()
    assert set(openai.types.Batch.model_fields) <= set(found)
    assert found["request_counts"] == {"total": 10, "completed": 2, "failed": 4}
    assert found["eta_seconds"] == 8
    assert [name for name, value in found.items() if value == ""] == []
    openai.types.Batch.model_validate({**found, "input_file_id": "file-1"})


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_the_end_of_a_batch_is_a_moment_of_its_own(status: str) -> None:
    """Only that of its status; then there is nothing to wait for."""
    found = shown(status=status, ended_at=3_000)
    assert {name for name in STATUSES if found[f"{name}_at"] is not None} == {status}
    assert (found[f"{status}_at"], found["eta_seconds"]) == (3, None)


def test_an_estimate_sums_what_the_lines_may_cost() -> None:
    """At the price of batches; what is no longer on offer costs nothing."""
    asked = [line(1, model="dear"), line(2, model="dear", max_tokens=3), line(3)]

    async def pieces() -> AsyncIterator[bytes]:
        content = b"\xef\xbb\xbf" + b"\n".join([*asked, line(4, model="gone")])
        for start in range(0, len(content), 7):
            yield content[start : start + 7]

    def reckoned(price: str) -> Estimate:
        return asyncio.run(estimate(pieces(), CATALOG, Decimal(price)))

    whole, half = reckoned("1"), reckoned("0.5")
    assert whole.completion == 10 + 3 + 10
    assert (half.prompt, half.completion) == (whole.prompt, whole.completion)
    dear = whole.prompt // 3 * 2
    assert whole.cost == (2 * dear + 4 * 13) * 1_000
    assert half.cost == whole.cost // 2
