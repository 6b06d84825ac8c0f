"""The models on offer: their limits, prices and upstreams, read from a TOML file."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.errors import ModelNotFound

_BASE_URL = re.compile(r"https?://[^\s?#/]+[^\s?#]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
_FRAMING_HEADERS = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}
)
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


class CatalogError(Exception):
    """The catalogue cannot be used; the message names the entry."""


class UpstreamEntry(BaseModel):
    """A server that runs models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialect: Literal["openai", "anthropic"]
    base_url: str
    """Everything up to `/chat/completions` or `/messages`; of Azure, up to `/deployments`."""
    api_key_env: str | None = None
    """The environment variable with its key; read by workers only."""
    api_version: str | None = None
    """Makes it Azure: the deployment goes into the path, the key into `api-key`."""
    headers: dict[str, str] = {}
    """Sent with every call, beside those of the dialect."""
    query: dict[str, str] = {}
    """Added to the address of every call."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if not _BASE_URL.fullmatch(url):
            raise ValueError("should begin with http:// or https:// and have no '?' or '#'")
        return url

    @field_validator("headers")
    @classmethod
    def _can_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if name.lower() in _KEY_HEADERS:
                raise ValueError(f"{name!r} is a key's place; name its variable in api_key_env")
            if name.lower() in _FRAMING_HEADERS:
                raise ValueError(f"{name!r} is set by the worker")
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"{name!r} has a name or a value that no header can have")
        return headers

    @model_validator(mode="after")
    def _only_azure_has_versions(self) -> "UpstreamEntry":
        if self.api_version is not None and self.dialect != "openai":
            raise ValueError("api_version makes it Azure, which speaks the dialect 'openai'")
        if self.api_version is not None and "api-version" in self.query:
            raise ValueError("query names the 'api-version' that api_version sets")
        return self


class Model(BaseModel):
    """A model on offer. Prices are credits per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    upstream: str
    upstream_model: str = ""
    """What the upstream calls it; the same name unless set."""
    context_window: int = Field(gt=0)
    max_output_tokens: int = Field(gt=0)
    input_price: float = Field(default=0.0, ge=0)
    cached_input_price: float | None = Field(default=None, ge=0)
    cache_write_price: float | None = Field(default=None, ge=0)
    output_price: float = Field(default=0.0, ge=0)
    free: bool = False
    fallbacks: list[str] = []
    aliases: list[str] = []

    @model_validator(mode="after")
    def _a_price_of_zero_must_say_so(self) -> "Model":
        if not self.free and not (self.input_price and self.output_price):
            raise ValueError("has no price; set input_price and output_price, or free = true")
        return self


class Catalog(BaseModel):
    """All models and upstreams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstreams: dict[str, UpstreamEntry]
    models: dict[str, Model]

    def find(self, name: str) -> Model:
        """The model of this name or alias. Raises `ModelNotFound`."""
        model = self.models.get(name) or self._by_alias().get(name)
        if model is None:
            known = ", ".join(sorted(self.models))
            raise ModelNotFound(
                f"The model {name[:100]!r} does not exist. Available: {known}.", param="model"
            )
        return model

    def chain(self, name: str) -> list[Model]:
        """That model and those it falls back to, in order. Raises `ModelNotFound`."""
        first = self.find(name)
        return [first, *(self.models[fallback] for fallback in first.fallbacks)]

    def _by_alias(self) -> dict[str, Model]:
        return {alias: model for model in self.models.values() for alias in model.aliases}

    @field_validator("models")
    @classmethod
    def _each_knows_its_name(cls, models: dict[str, Model]) -> dict[str, Model]:
        return {
            name: model.model_copy(
                update={"name": name, "upstream_model": model.upstream_model or name}
            )
            for name, model in models.items()
        }

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> "Catalog":
        taken = set(self.models)
        for model in self.models.values():
            if model.upstream not in self.upstreams:
                raise ValueError(
                    f"model {model.name!r} names no known upstream: {model.upstream!r}"
                )
            for fallback in model.fallbacks:
                if fallback not in self.models:
                    raise ValueError(f"model {model.name!r} falls back to unknown {fallback!r}")
            for alias in model.aliases:
                if alias in taken:
                    raise ValueError(f"alias {alias!r} of {model.name!r} is taken")
                taken.add(alias)
        return self


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Catalog:
    """Read a catalogue; `${NAME:-default}` comes from the environment. Raises `CatalogError`."""
    try:
        text = _VARIABLE.sub(
            lambda found: environment.get(found["name"]) or found["default"] or "",
            path.read_text(encoding="utf-8"),
        )
        return Catalog.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CatalogError(f"{path}: {where}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"{path}: {error}") from error
