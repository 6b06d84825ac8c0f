"""Request bodies in the OpenAPI document: routes read them themselves, to name every fault."""

from typing import Any

from pydantic import BaseModel

from api.wire.headers import HEADERS, IDEMPOTENCY, NDJSON


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


def batch_of(shape: type[BaseModel], query: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body has this shape, or is lines and has this query."""
    described = body_of(shape)
    described["requestBody"]["content"] |= _LINES
    return {**described, "parameters": [*query_of(query)["parameters"], *IDEMPOTENCY]}


def query_of(shape: type[BaseModel] | None, **more: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose query has this shape, and parameters beside it."""
    fields = {} if shape is None else shape.model_json_schema()["properties"]
    return {"parameters": [_parameter(name, each) for name, each in {**fields, **more}.items()]}


def _parameter(name: str, field: dict[str, Any]) -> dict[str, Any]:
    schema = {key: value for key, value in field.items() if key in _PLAIN}
    parameter = {"name": name, "in": "query", "required": False, "schema": schema}
    if "description" in schema:
        parameter["description"] = schema.pop("description")
    if name == "metadata":  # as `metadata[team]=blue`
        parameter |= {"style": "deepObject", "explode": True}
    return parameter


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

_JSON: dict[str, Any] = {"application/json": {}}
_EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
_SEEN = {"description": "Nothing comes after what `Last-Event-ID` names."}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The completion; with `stream`, its chunks.", "content": _JSON | _EVENTS},
    202: {"description": "It goes on in the background: see `Location`.", "content": _JSON},
}
"""The `responses` of a route that takes chat requests."""
REPLAYS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The completion; with `stream`, its chunks.", "content": _JSON | _EVENTS},
    204: _SEEN,
}
"""Those of a route that shows a completion."""
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Named events.", "content": _EVENTS},
    204: _SEEN,
}
"""Those of a route that tells the life of a job."""

_LINES: dict[str, Any] = {NDJSON: {"schema": {"type": "string"}}}
RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Lines, as the batch's files have them.",
        "content": _LINES,
        "headers": {
            "X-Incomplete": {
                "description": "Whether there are, or will be, more of them after these.",
                "schema": {"type": "string", "enum": ["true", "false"]},
            },
            "X-Next-Cursor": {
                "description": "Where to go on: `after`. Not with `follow`.",
                "schema": {"type": "string"},
            },
        },
    }
}
"""The `responses` of a batch's results."""

FLAG = {"type": "boolean"}
PLACE = {"type": "integer", "minimum": 0}
"""Query parameters that have no model."""

_PLAIN = {"title", "description", "type", "default", "minimum", "maximum", "enum"}
