"""Query strings: the filters and cursors of lists, and where a stream is taken up again."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from api.following import FROM_START
from api.parse import validate
from api.wire.shapes import Metadata, ModelName, UnixSeconds
from shared import ids
from shared.errors import InvalidRequest
from shared.lifecycle import JobStatus

LAST_SEQ = 2**63 - 1


def _bare(shown: str) -> str:
    job_id = ids.bare(shown)
    if job_id is None:
        raise PydanticCustomError("job_id", "should be a job's id")
    return job_id


JobId = Annotated[str, AfterValidator(_bare)]
"""Any of a job's three ids; becomes the bare one."""
BatchId = Annotated[str, StringConstraints(pattern=r"^batch_[0-9a-z]{1,64}$")]


class Filters(BaseModel):
    """What the lists of jobs and of completions have in common. Text becomes numbers here."""

    model_config = ConfigDict(frozen=True)

    status: frozenset[JobStatus] = frozenset()
    """Any of these; empty means every status."""
    model: ModelName | None = None
    metadata: Metadata = Field(default_factory=dict)
    """All of these pairs."""
    after: JobId | None = None
    """The last job of the page before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class JobFilters(Filters):
    """The query of `GET /v1/jobs`: newest first unless told."""

    batch_id: BatchId | None = None
    created_after: UnixSeconds | None = None
    created_before: UnixSeconds | None = None
    order: Literal["asc", "desc"] = "desc"


class CompletionFilters(Filters):
    """The query of `GET /v1/chat/completions`: oldest first unless told, as OpenAI has it."""

    order: Literal["asc", "desc"] = "asc"


class MessageFilters(BaseModel):
    """The query of a completion's messages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    """The id of the last message of the page before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "asc"


Query = TypeVar("Query", bound=BaseModel)


def parse_query(shape: type[Query], items: Iterable[tuple[str, str]]) -> Query:
    """A query string's pairs as filters.

    The `status` of jobs may be repeated or hold commas; `metadata[k]=v` gathers in `metadata`.
    Raises `InvalidRequest` for what is unknown, repeated or out of range, with its name as `param`.
    """
    found: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    statuses: set[JobStatus] = set()
    for name, value in items:
        key = re.fullmatch(r"metadata\[(.+)\]", name, re.DOTALL)
        if key and "metadata" in shape.model_fields:
            metadata[key[1]] = value
        elif name == "status" and _takes_statuses(shape):
            statuses.update(_status(word) for word in value.split(","))
        elif name in found:
            raise InvalidRequest(f"'{name}' can be given only once.", param=name)
        elif name == "metadata" or name not in shape.model_fields:
            raise InvalidRequest(f"There is no query parameter '{name[:80]}'.", param=name[:80])
        else:
            found[name] = value
    if metadata:
        found["metadata"] = metadata
    if statuses:
        found["status"] = statuses
    return validate(shape, found)


def parse_flag(value: str | None, name: str) -> bool:
    """`true` or `false` in a query; absent is false. Raises `InvalidRequest`."""
    if value not in (None, "true", "false"):
        raise InvalidRequest(f"Invalid '{name}': should be true or false.", param=name)
    return value == "true"


def _takes_statuses(shape: type[BaseModel]) -> bool:
    field = shape.model_fields.get("status")
    return field is not None and field.annotation == frozenset[JobStatus]


def _status(word: str) -> JobStatus:
    if word not in set(JobStatus):
        raise InvalidRequest(
            f"Invalid 'status': should be one or more of {', '.join(JobStatus)}.", param="status"
        )
    return JobStatus(word)


def parse_starting_after(value: str | None, last_event_id: str | None = None) -> int:
    """The last sequence number a reader has seen, `FROM_START` if it says none.

    The larger wins of `starting_after` and `Last-Event-ID`: a browser that reconnects repeats its
    first URL. Raises `InvalidRequest` when `starting_after` is no such number; a foreign
    `Last-Event-ID` is ignored.
    """
    seen = _sequence_number(value) if value is not None else FROM_START
    if seen is None:
        raise InvalidRequest(
            "Invalid 'starting_after': should be the sequence number of an event, 0 or more.",
            param="starting_after",
        )
    since = _sequence_number(last_event_id or "")
    return seen if since is None else max(seen, since)


def _sequence_number(text: str) -> int | None:
    number = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None
    return number if number is not None and number <= LAST_SEQ else None
