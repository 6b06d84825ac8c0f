"""Logs: one line an event, ours and the libraries', and no secret in any."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from shared import log
from shared.settings import StoreSettings

KEY = "ak_0123456789ab_" + "z" * 32


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """What was logged, as JSON."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_every_line_is_json_and_names_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    """Our own lines and a library's look the same, and carry what is bound to the context."""
    log.configure(StoreSettings(log_format="json"), "api")

    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger().info("request", status=200)
        logging.getLogger("library").warning("it %s", "rains")

    ours, theirs = lines(capsys)
    assert (ours["event"], ours["status"], ours["level"]) == ("request", 200, "info")
    assert (theirs["event"], theirs["level"]) == ("it rains", "warning")
    assert all((one["process"], one["request_id"]) == ("api", "req_1") for one in (ours, theirs))


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"refused {KEY}", "refused ak_0123456789ab_…"),
        ("Bearer sk-proj-abcdefgh12345678", "Bearer sk-…"),
        ("redis://:hunter2@host:6379/0", "redis://:…@host:6379/0"),
        ("postgresql+psycopg://me:hunter2@db/s", "postgresql+psycopg://me:…@db/s"),
        ("nothing to hide, ask me: http://host:80/a@b", "nothing to hide, ask me: http://host:80/a@b"),
    ],
)  # fmt: skip
def test_secrets_are_blanked(capsys: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    """Whether they are a value, part of a message, or in a library's arguments."""
    log.configure(StoreSettings(log_format="json"), "api")

    structlog.get_logger().info(text, said=text)
    logging.getLogger("library").warning("%s", text)

    ours, theirs = lines(capsys)
    assert ours["event"] == ours["said"] == theirs["event"] == shown


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_in_tracebacks_and_in_nested_values_are_blanked(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """A driver puts its URL into its errors."""
    log.configure(StoreSettings(log_format=form), "api")

    try:
        raise ConnectionError("no answer from postgresql://me:hunter2@db/s")
    except ConnectionError:
        structlog.get_logger().exception("broke", seen=[KEY], more={"key": KEY})

    said = capsys.readouterr().err
    assert "ConnectionError" in said
    assert "hunter2" not in said
    assert "z" * 32 not in said


def test_the_level_is_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Below it nothing is said."""
    log.configure(StoreSettings(log_level="warning"), "worker")

    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")

    assert [line["event"] for line in lines(capsys)] == ["loud"]
