"""Request bodies in the OpenAPI document: routes read them themselves, to name every fault."""

from typing import Any

from pydantic import BaseModel

from api.wire.headers import HEADERS


def submission_of(shape: type[BaseModel], *, arrays: bool = False) -> dict[str, Any]:
    """The `openapi_extra` of a route that makes jobs of bodies of this shape."""
    return {**body_of(shape, arrays=arrays), "parameters": HEADERS}


def body_of(shape: type[BaseModel], *, arrays: bool = False) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body has this shape."""
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema = {**schema, "properties": _outline(schema.get("properties", {}))}
    if arrays:
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _outline(properties: dict[str, Any]) -> dict[str, Any]:
    """Fields without their inner shapes, which OpenAI's own reference describes at length."""
    return {
        name: {key: value for key, value in field.items() if key in _PLAIN}
        for name, field in properties.items()
    }


_ERROR = {
    "message": {"type": "string"},
    "type": {"type": "string"},
    "param": {"type": ["string", "null"], "description": "The field to blame."},
    "code": {"type": "string"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A refusal, in OpenAI's envelope.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"error": {"type": "object", "properties": _ERROR}},
                }
            }
        },
    }
}
"""The `responses` of every route; without them FastAPI promises a 422 that we never send."""

_PLAIN = {"title", "description", "type", "default", "minimum", "maximum", "enum"}
