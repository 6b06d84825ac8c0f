"""What all request shapes share: strict types, unknown fields kept, text that can be stored."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A part of a request. `"0.5"` is no number and `true` no integer; `null` is as good as absent.

    Fields we do not know are let through, because a newer upstream may know them.
    """

    model_config = ConfigDict(strict=True, extra="allow")


class Closed(BaseModel):
    """A part of a request that is ours alone: an unknown field can only be a slip of the pen."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "should not contain the NUL character")
    return text


without_nul = AfterValidator(_without_nul)
"""For text in columns, which cannot hold U+0000 in PostgreSQL. (Contents may: kept as bytes.)"""

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""What OpenAI lets a tool or a schema be called."""

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256), without_nul]

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), without_nul]
MetadataValue = Annotated[str, StringConstraints(max_length=512), without_nul]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16, fail_fast=True)]

UnixSeconds = Annotated[int, Field(ge=0, le=253_402_300_799)]
"""A moment until the end of the year 9999, so that its milliseconds fit a BIGINT."""


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The shape of a JSON schema's top, which is what upstreams choke on; the rest is theirs."""
    required = schema.get("required", [])
    if not isinstance(schema.get("properties", {}), dict):
        raise PydanticCustomError("schema", "should have an object in 'properties'")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise PydanticCustomError("schema", "should have an array of strings in 'required'")
    return schema


def _object_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("schema", "should be a JSON schema of type 'object'")
    return _schema(schema)


Schema = Annotated[dict[str, Any], AfterValidator(_schema)]
ObjectSchema = Annotated[dict[str, Any], AfterValidator(_object_schema)]
"""The schema of a function's parameters, which OpenAI wants to be an object's."""
