"""`sluice accounts`, `keys`, `credits` and `audit-log` on a SQLite database of their own."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.failure import FAILED, USAGE
from cli.main import app
from tests import sqlite

runner = CliRunner()


@pytest.fixture(autouse=True)
def migrated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All tables, and nothing of the developer's own set-up."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "ada")
    sqlite.fresh(tmp_path)


def told(*words: str) -> Any:
    """What a command prints as JSON."""
    done = runner.invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def said(*words: str) -> str:
    """What a command prints for people."""
    done = runner.invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def test_an_account_is_limited_and_disabled_by_name() -> None:
    """What is not given stays, 0 takes a limit away."""
    made = told("accounts", "create", "acme", "--requests-per-minute", "60", "--concurrency", "5")
    assert made["limits"] == {"requests_per_minute": 60, "concurrency": 5}

    changed = told("accounts", "limit", "acme", "--concurrency", "0", "--tokens-per-minute", "9")
    assert changed["limits"] == {"requests_per_minute": 60, "tokens_per_minute": 9}
    assert told("accounts", "disable", made["id"])["disabled_at"] is not None
    assert "disabled" in said("accounts", "list")
    assert told("accounts", "enable", "acme")["disabled_at"] is None
    assert [row["name"] for row in told("accounts", "list")] == ["acme"]


def test_a_key_is_made_on_terms_changed_and_rotated() -> None:
    """Those of the successor are the same."""
    made = told(
        *("keys", "create", "--account", "acme", "--scope", "admin", "--scope", "completions"),
        *("--model", "gpt-5", "--model", "openrouter/*", "--concurrency", "2"),
        *("--credit-limit", "0.5", "--credit-period", "day"),
    )
    assert made["scopes"] == ["admin", "completions"]
    assert made["models"] == ["gpt-5", "openrouter/*"]
    assert (made["credit_limit"], made["credit_period"]) == ("0.5", "day")

    said("keys", "limit", made["id"], "--requests-per-minute", "7", "--credit-limit", "none")
    new = told("keys", "rotate", made["id"], "--overlap", "1h")
    assert new["limits"] == {"concurrency": 2, "requests_per_minute": 7}
    assert (new["models"], new["scopes"]) == (made["models"], made["scopes"])
    assert new["credit_limit"] is None
    old, successor = told("keys", "list")
    assert (old["id"], successor["id"]) == (made["id"], new["id"])
    assert 3_500 < old["expires_at"] - new["created_at"] < 3_700
    assert "admin" in said("keys", "list")


def test_credits_are_granted_and_taken_by_name() -> None:
    """A reference counts once; the books show every movement."""
    told("accounts", "create", "acme")
    for _ in range(2):
        words = ("credits", "grant", "acme", "2.000000001", "--note", "June", "--reference", "r")
        assert told(*words) == {"credits": "2.000000001", "held": "0"}
    assert "1.500000001 credits" in said("credits", "grant", "acme", "--", "-0.5")

    assert told("credits", "balance", "acme")["credits"] == "1.500000001"
    rows = told("credits", "ledger", "acme")
    assert [(row["credits"], row["note"]) for row in rows] == [
        ("-0.5", ""),
        ("2.000000001", "June"),
    ]
    assert "June" in said("credits", "ledger", "acme", "--limit", "2")
    assert told("credits", "losses") == []


def test_the_log_has_who_did_what() -> None:
    """Newest first."""
    made = told("keys", "create", "--account", "acme", "--credits", "5")
    said("keys", "revoke", made["id"])

    rows = told("audit-log")
    assert [row["action"] for row in rows] == ["keys.revoke", "credits.grant", "keys.create"]
    assert {row["actor"] for row in rows} == {"cli:ada"}
    assert rows[0]["subject"] == made["id"]
    assert "keys.revoke" in said("audit-log", "--limit", "1")


MISTAKES = [
    (["accounts", "create", "acme"], FAILED, "already"),
    (["accounts", "disable", "nobody"], FAILED, "no account"),
    (["credits", "grant", "acme", "--", "-1"], FAILED, "can be taken"),
    (["credits", "grant", "acme", "much"], USAGE, "should be a number"),
    (["credits", "balance", "nobody"], FAILED, "no account"),
    (["keys", "create", "--account", "acme", "--scope", "root"], USAGE, "no scope"),
    (["keys", "create", "--account", "acme", "--credit-period", "year"], USAGE, "no period"),
    (["keys", "create", "--account", "acme", "--credit-limit", "lots"], USAGE, "number"),
    (["keys", "rotate", "key_none"], FAILED, "no key"),
    (["keys", "limit", "key_none", "--concurrency", "1"], FAILED, "no key"),
]


def test_a_mistake_is_one_sentence() -> None:
    """And nothing is done or written down."""
    told("accounts", "create", "acme")

    for words, code, sentence in MISTAKES:
        done = runner.invoke(app, words)
        assert done.exit_code == code, words
        assert sentence in done.output
    assert len(told("audit-log")) == 1
