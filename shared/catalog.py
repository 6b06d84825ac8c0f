"""The models on offer: their limits, prices and upstreams, read from a TOML file."""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shared import toml_files
from shared.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from shared.features import Feature
from shared.limits import Limits

_BASE_URL = re.compile(r"https?://[^\s?#/]+[^\s?#]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
_FRAMING_HEADERS = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}
)


LISTED = 20
"""Models that the answer to a name that is unknown lists at most."""
Price = Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)]


class CatalogError(Exception):
    """The catalogue cannot be used; the message names file and entries, and what to do."""


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
    lacks: list[Feature] = []
    """What none of its models has."""
    on_cancel: Literal["close", "drain"] = "close"
    """What becomes of a cancelled job's call: `drain` reads it to the end, see `docs/models.md`."""

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
    entry: str = ""
    """Its name in the catalogue; a pattern when the model is one of many that it stands for."""
    upstream: str
    upstream_model: str = ""
    """What the upstream calls it; the same name unless set. A pattern's `*` is filled in."""
    context_window: int = Field(gt=0)
    max_output_tokens: int = Field(gt=0)
    input_price: Price = 0.0
    cached_input_price: Price | None = None
    cache_write_price: Price | None = None
    output_price: Price = 0.0
    free: bool = False
    fallbacks: list[str] = []
    aliases: list[str] = []
    lacks: list[Feature] = []
    limits: Limits | None = None
    """Of each account that asks for it; a pattern's models share them."""
    running: int | None = Field(default=None, ge=1)
    """Jobs asking for it that run at once, over all workers and accounts."""

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for every model whose name begins so."""
        return self.name.endswith("*")

    def refusal(self, features: Mapping[Feature, str], tokens: int = 0) -> InvalidRequest | None:
        """Why it cannot take a request that uses these features and has at least so many tokens.

        None when it can. Each feature comes with the field that asks for it.
        """
        for feature, field in features.items():
            if feature in self.lacks:
                message = f"{field!r} asks for {feature!r}, which the model {self.name!r} has not."
                return InvalidRequest(message, param=field, code="unsupported_parameter")
        if tokens > self.context_window:
            return ContextLengthExceeded(
                f"The context window of {self.name!r} is {self.context_window} tokens; "
                f"the messages have more than {tokens}.",
                param="messages",
            )
        return None

    def standing_for(self, name: str) -> "Model":
        """Of a pattern: the model of this name."""
        star = name.removeprefix(self.name[:-1])
        called = self.upstream_model.replace("*", star)
        return self.model_copy(update={"name": name, "upstream_model": called})

    @model_validator(mode="after")
    def _has_one_price(self) -> "Model":
        if not self.free and not (self.input_price and self.output_price):
            raise ValueError("has no price; set input_price and output_price, or free = true")
        cache = self.cached_input_price or self.cache_write_price
        if self.free and (self.input_price or self.output_price or cache):
            raise ValueError("is free and has a price; leave one of them out")
        return self

    @model_validator(mode="after")
    def _can_say_what_it_may(self) -> "Model":
        if self.max_output_tokens > self.context_window:
            raise ValueError("max_output_tokens is more than context_window; lower it")
        return self


class Catalog(BaseModel):
    """All models and upstreams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstreams: dict[str, UpstreamEntry]
    models: dict[str, Model]

    def find(self, name: str) -> Model:
        """The model of this name or alias, or that the longest pattern makes of it.

        Raises `ModelNotFound`.
        """
        model = None
        if "*" not in name:
            model = self.models.get(name) or self._by_alias.get(name) or self._by_pattern(name)
        if model is None:
            known = sorted(self.models)
            shown = ", ".join(known[:LISTED]) + (", …" if len(known) > LISTED else "")
            raise ModelNotFound(
                f"The model {name[:100]!r} does not exist. Available: {shown}.", param="model"
            )
        return model

    def chain(
        self, name: str, features: Mapping[Feature, str] | None = None, *, tokens: int = 0
    ) -> list[Model]:
        """That model and those it falls back to, in order, that can take such a request.

        It uses these `features`, each with the field that asks for it, and has at least so many
        `tokens`. Raises `ModelNotFound`, or `InvalidRequest` when the first cannot take it.
        """
        first, features = self.find(name), features or {}
        if (refusal := first.refusal(features, tokens)) is not None:
            raise refusal
        others = [model for model in map(self.find, first.fallbacks) if model.name != first.name]
        return [first, *(model for model in others if model.refusal(features, tokens) is None)]

    @cached_property
    def _by_alias(self) -> dict[str, Model]:
        return {alias: model for model in self.models.values() for alias in model.aliases}

    @cached_property
    def _patterns(self) -> list[Model]:
        found = [model for model in self.models.values() if model.is_pattern]
        return sorted(found, key=lambda model: len(model.name), reverse=True)

    def _by_pattern(self, name: str) -> Model | None:
        for model in self._patterns:
            prefix = model.name[:-1]
            if name.startswith(prefix) and name != prefix:
                return model.standing_for(name)
        return None

    @field_validator("models", mode="before")
    @classmethod
    def _named_by_their_tables(cls, models: Any) -> Any:
        for name, entry in models.items() if isinstance(models, dict) else ():
            if "*" in name[:-1]:
                raise ValueError(f"{name!r} may have a '*' only at its end; take the other out")
            if isinstance(entry, dict) and (own := {"name", "entry"} & entry.keys()):
                raise ValueError(f"{name!r} is named by its table; leave {min(own)!r} out")
        return models

    @field_validator("models")
    @classmethod
    def _each_knows_its_name(
        cls, models: dict[str, Model], others: ValidationInfo
    ) -> dict[str, Model]:
        upstreams: dict[str, UpstreamEntry] = others.data.get("upstreams", {})

        def named(name: str, model: Model) -> Model:
            called = model.upstream_model or ("*" if name.endswith("*") else name)
            upstream = upstreams.get(model.upstream)
            lacks = [*model.lacks, *(upstream.lacks if upstream else ())]
            known = {"name": name, "entry": name, "upstream_model": called, "lacks": lacks}
            return model.model_copy(update=known)

        return {name: named(name, model) for name, model in models.items()}

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> "Catalog":
        for model in self.models.values():
            for complaint in self._complaints(model):
                raise ValueError(f"models.{model.name}.{complaint}")
        return self

    def _complaints(self, model: Model) -> Iterator[str]:
        if model.upstream not in self.upstreams:
            known = ", ".join(sorted(self.upstreams))
            yield f"upstream: there is no upstream {model.upstream!r}; write one of: {known}"
        if model.upstream_model.count("*") > model.is_pattern:
            yield "upstream_model: may have one '*', if the name ends in one; take it out"
        if model.is_pattern and model.aliases:
            yield "aliases: a pattern has no alias; add an entry of the full name"
        yield from self._complaints_of_fallbacks(model)
        yield from self._complaints_of_aliases(model)

    def _complaints_of_fallbacks(self, model: Model) -> Iterator[str]:
        seen = {model.name}
        for fallback in model.fallbacks:
            if "*" in fallback:
                yield f"fallbacks: {fallback!r} is a pattern; write the full name of a model"
                continue
            try:
                name = self.find(fallback).name
            except ModelNotFound:
                yield f"fallbacks: there is no model {fallback!r}; add it, or take it out"
                continue
            if name in seen:
                yield f"fallbacks: {fallback!r} is in its chain already; take it out"
            seen.add(name)

    def _complaints_of_aliases(self, model: Model) -> Iterator[str]:
        for alias in model.aliases:
            if alias in self.models or self._by_alias[alias] is not model:
                yield f"aliases: {alias!r} is taken by another model; choose another"
            elif model.aliases.count(alias) > 1 or "*" in alias:
                yield f"aliases: {alias!r} is there twice, or has a '*'; take it out"


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Catalog:
    """Read a catalogue; `${NAME:-default}` comes from the environment. Raises `CatalogError`."""
    try:
        return Catalog.model_validate(toml_files.read(path, environment))
    except ValidationError as error:
        told = toml_files.faults(error, _KEYS)
        raise CatalogError("\n".join(f"{path}: {fault}" for fault in told)) from error
    except (OSError, ValueError) as error:  # of TOML and of UTF-8 too
        raise CatalogError(f"{path}: {error}") from error


_KEYS = {"upstreams", "models"}.union(
    Model.model_fields, UpstreamEntry.model_fields, Limits.model_fields
).difference({"name", "entry"})
