"""What a request says about itself in headers."""

import pytest
from fastapi import Request

from api.wire.headers import parse_cancel_after, parse_sent
from shared.errors import InvalidRequest

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def post(**headers: str) -> Request:
    """A request with these headers."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": raw}
    return Request({**scope, "server": ("127.0.0.1", 80), "query_string": b"", "scheme": "http"})


@pytest.mark.parametrize(
    "text, milliseconds",
    [("90", 90_000), ("90s", 90_000), ("5m", 300_000), ("2h", 7_200_000), (" 1d ", 86_400_000)],
)
def test_a_span_is_understood(text: str, milliseconds: int) -> None:
    """As Replicate spells it, and in plain seconds."""
    assert parse_cancel_after(text) == milliseconds


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "soon", "5 m", "31d", "٣s", "9999999999"])
def test_a_strange_span_is_refused(text: str) -> None:
    """The error names the header."""
    with pytest.raises(InvalidRequest) as refused:
        parse_cancel_after(text)

    assert refused.value.param == "Cancel-After"


def test_no_deadline_is_none() -> None:
    """The header is not obligatory."""
    assert parse_cancel_after(None) is None


def test_the_order_of_keys_does_not_matter() -> None:
    """The same JSON is the same request, whoever wrote it down."""
    turned = dict(reversed(BODY.items()))

    first = parse_sent(post(idempotency_key="k"), BODY)
    again = parse_sent(post(idempotency_key="k"), turned)

    assert first is not None
    assert first == again
    assert first.scope == "POST /v1/jobs"
    assert first != parse_sent(post(idempotency_key="k"), {**BODY, "n": 2})


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb"])
def test_a_strange_key_is_refused(key: str) -> None:
    """The error names the header."""
    with pytest.raises(InvalidRequest) as refused:
        parse_sent(post(idempotency_key=key), BODY)

    assert refused.value.param == "Idempotency-Key"


@pytest.mark.parametrize(
    "count, retried", [("0", False), ("1", True), ("2", True), ("x", False), ("00", False)]
)
def test_an_sdk_says_how_often_it_has_tried(count: str, retried: bool) -> None:
    """Only a repetition may lead to an earlier job."""
    sent = parse_sent(post(x_stainless_retry_count=count), BODY)

    assert sent is not None
    assert (sent.by_sdk, sent.retried, sent.key) == (True, retried, None)


def test_other_clients_are_not_recognised() -> None:
    """Two equal requests without a key are two requests."""
    assert parse_sent(post(), BODY) is None
