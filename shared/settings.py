"""What every process reads from the environment: where the rows, the queue and the models are."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _seconds(value: object) -> object:
    """A bare number in the environment is seconds."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


_NUMBER = re.compile(r"\d+(\.\d+)?")
Duration = Annotated[timedelta, BeforeValidator(_seconds)]
"""A span: seconds (`25`), `HH:MM:SS` or ISO 8601 (`PT25S`)."""
PACKAGED_CATALOG = Path(__file__).with_name("models.toml")


class StoreSettings(BaseSettings):
    """Settings that api, workers and CLI share. All are environment variables, `SLUICE_…`."""

    model_config = SettingsConfigDict(env_prefix="SLUICE_", frozen=True, extra="ignore")

    home: Path = Path(".sluice")
    """Where the embedded default keeps its state."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL; SQLite in `home` unless set. `postgres://` is understood."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey: broker, delta log and bell. `rediss://` for TLS; `sentinel://` works too."""
    catalog: Path = PACKAGED_CATALOG
    """The models on offer, a TOML file."""
    files: str | None = None
    """A folder, or a bucket by URL (`s3://`, `gs://`, `az://`); a folder in `home` unless set."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Tries a job gets, unless it says otherwise."""
    batch_price: float = Field(default=1.0, ge=0, le=1)
    """What a line of a batch costs, as a part of what a request of its own would."""
    log_format: Literal["console", "json"] = "json"
    log_level: str = "INFO"

    @field_validator("catalog")
    @classmethod
    def _catalog_exists(cls, path: Path) -> Path:
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
        return path

    @field_validator("files")
    @classmethod
    def _files_can_be_kept(cls, place: str | None) -> str | None:
        scheme, url, _ = (place or "").partition("://")
        if url and scheme not in ("s3", "gs", "az"):
            raise ValueError("should be a folder, or begin with s3://, gs:// or az://")
        return place or None

    @property
    def file_store(self) -> str:
        """Where the bytes of files are, for `shared.storage`."""
        return self.files or str((self.home / "files").absolute())

    @property
    def database(self) -> str:
        """The database's URL with the driver we use."""
        if self.database_url is None:
            return f"sqlite:///{(self.home / 'sluice.db').absolute()}"
        url = self.database_url.get_secret_value()
        for short in ("postgres://", "postgresql://"):
            if url.startswith(short):
                return "postgresql+psycopg://" + url.removeprefix(short)
        return url

    @property
    def redis(self) -> str:
        """The Redis URL in the clear."""
        return self.redis_url.get_secret_value()
