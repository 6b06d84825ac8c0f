"""Settings: read once from the environment, frozen, with secrets that do not print."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from api.settings import ApiSettings
from shared.settings import StoreSettings
from workers.settings import WorkerSettings


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "DATABASE_URL", "REDIS_URL", "CATALOG", "LEASE_TTL", "PORT"):
        monkeypatch.delenv(f"SLUICE_{name}", raising=False)


def test_without_a_url_the_database_is_a_file_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The embedded default; the path is absolute, wherever a process was started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLUICE_HOME", "state")

    assert StoreSettings().database == f"sqlite:///{tmp_path}/state/sluice.db"


@pytest.mark.parametrize(
    "given, used",
    [
        ("postgres://u:p@db/s", "postgresql+psycopg://u:p@db/s"),
        ("postgresql://u:p@db/s", "postgresql+psycopg://u:p@db/s"),
        ("postgresql+psycopg://db/s", "postgresql+psycopg://db/s"),
        ("sqlite:////tmp/s.db", "sqlite:////tmp/s.db"),
    ],
)
def test_a_postgres_url_gets_our_driver(
    monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    """As hosts give it, `postgres://` and without a driver."""
    monkeypatch.setenv("SLUICE_DATABASE_URL", given)

    assert StoreSettings().database == used


def test_secrets_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """A settings object may end in a traceback."""
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://u:hunter2@db/s")
    monkeypatch.setenv("SLUICE_REDIS_URL", "redis://:hunter2@redis:6379/0")

    for settings in (StoreSettings(), ApiSettings(), WorkerSettings()):
        assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()}"
        assert "hunter2" in settings.redis


def test_settings_cannot_be_changed() -> None:
    """They are built at the entry point and passed in."""
    with pytest.raises(ValidationError, match="frozen"):
        setattr(StoreSettings(), "log_level", "DEBUG")  # noqa: B010  (mypy refuses it as well)


@pytest.mark.parametrize(
    "name, value", [("CATALOG", "nowhere.toml"), ("PORT", "70000"), ("LOG_FORMAT", "xml")]
)
def test_a_setting_that_cannot_work_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """With its name."""
    monkeypatch.setenv(f"SLUICE_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        ApiSettings()


def test_spans_are_written_as_iso_8601_or_as_on_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both name the same span."""
    for text in ("PT3S", "00:00:03"):
        monkeypatch.setenv("SLUICE_LEASE_TTL", text)
        assert WorkerSettings().lease_ttl == timedelta(seconds=3)


def test_the_api_has_no_setting_for_an_upstreams_key() -> None:
    """Provider keys live only in workers, named by the catalogue."""
    assert not [name for name in ApiSettings.model_fields if "key" in name]
