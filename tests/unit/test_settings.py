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


def test_content_is_not_kept_longer_than_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the field."""
    monkeypatch.setenv("SLUICE_RETENTION", "P7D")
    monkeypatch.setenv("SLUICE_CONTENT_RETENTION", "P7D")
    assert WorkerSettings().content_retention == timedelta(days=7)

    monkeypatch.setenv("SLUICE_CONTENT_RETENTION", "P8D")
    with pytest.raises(ValidationError, match=r"content_retention\n.*longer than SLUICE_RETENTION"):
        WorkerSettings()


def test_spans_are_written_as_iso_8601_or_as_on_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both name the same span."""
    for text in ("PT3S", "00:00:03"):
        monkeypatch.setenv("SLUICE_DRAIN", text)
        assert WorkerSettings().drain == timedelta(seconds=3)


@pytest.mark.parametrize(
    "spans, complaint",
    [
        ({"ttl": "15"}, "lease_margin\n.*not shorter than SLUICE_LEASE_TTL"),
        ({"ttl": "60", "beat": "22.5", "margin": "15"}, "two beats"),
    ],
)
def test_a_lease_that_a_late_beat_would_lose_is_refused(
    monkeypatch: pytest.MonkeyPatch, spans: dict[str, str], complaint: str
) -> None:
    """Two beats must fit into the time for which a worker trusts its lease."""
    for name, span in spans.items():
        monkeypatch.setenv(f"SLUICE_LEASE_{name.upper()}", span)

    with pytest.raises(ValidationError, match=complaint):
        WorkerSettings()


def test_the_api_has_no_setting_for_an_upstreams_key() -> None:
    """Provider keys live only in workers, named by the catalogue."""
    assert not [name for name in ApiSettings.model_fields if "key" in name]


ISSUER = {"jwt_issuer": "https://issuer.example", "jwt_audience": "sluice"}
URL = "https://issuer.example/keys"


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"jwt_secret": "x" * 31, **ISSUER}, "jwt_secret\n.*32 bytes or more"),
        ({"jwt_secret": "x" * 32, "jwt_jwks_url": URL, **ISSUER}, "jwt_jwks_url\n.*never both"),
        ({"jwt_secret": "x" * 32, "jwt_issuer": "x"}, "jwt_audience\n.*needed"),
        ({"jwt_jwks_url": URL, "jwt_audience": "x"}, "jwt_issuer\n.*needed"),
        ({"jwt_jwks_url": URL, "jwt_audience": "x", "jwt_issuer": ""}, "jwt_issuer\n.*needed"),
        ({"jwt_jwks_url": "http://issuer.example", **ISSUER}, "jwt_jwks_url\n.*https"),
        ({"jwt_jwks_url": "http://127.0.0.1.example", **ISSUER}, "jwt_jwks_url\n.*https"),
        ({"jwt_jwks_url": "file:///etc/keys", **ISSUER}, "jwt_jwks_url\n.*https"),
        ({"jwt_jwks_url": "https://", **ISSUER}, "jwt_jwks_url\n.*https"),
        ({"jwt_jwks_url": URL, "jwt_algorithm": "HS256", **ISSUER}, "jwt_algorithm\n"),
        ({"jwt_jwks_url": URL, "jwt_algorithm": "none", **ISSUER}, "jwt_algorithm\n"),
    ],
)
def test_tokens_are_not_accepted_by_halves(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], complaint: str
) -> None:
    """The process does not start, and names the variable."""
    for name, value in given.items():
        monkeypatch.setenv(f"SLUICE_{name.upper()}", value)

    with pytest.raises(ValidationError, match=complaint):
        ApiSettings()


@pytest.mark.parametrize(
    "given",
    [
        {"jwt_secret": "x" * 32},
        {"jwt_jwks_url": URL, "jwt_algorithm": "ES256"},
        {"jwt_jwks_url": "http://localhost:9/keys"},
        {"jwt_jwks_url": "http://[::1]:9/keys"},
    ],
)
def test_tokens_are_accepted_by_secret_or_by_address(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    """Plain http is for this machine alone."""
    for name, value in {**given, **ISSUER}.items():
        monkeypatch.setenv(f"SLUICE_{name.upper()}", value)

    assert ApiSettings().jwt_issuer == ISSUER["jwt_issuer"]
