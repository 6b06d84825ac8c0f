"""Files as OpenAI has them: what an upload says of itself, the object, the lists."""

from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.parse import wrong
from api.wire.shapes import without_nul
from shared import clock
from shared.tables import File

KEPT_FOR: Final = timedelta(days=30)


class Upload(BaseModel):
    """The fields of an upload's form beside `file`. Those we do not know are let through."""

    purpose: Literal["batch"]
    anchor: Annotated[Literal["created_at"] | None, Field(alias="expires_after[anchor]")] = None
    seconds: Annotated[int | None, Field(alias="expires_after[seconds]", ge=3600, le=2_592_000)] = (
        None
    )

    @model_validator(mode="after")
    def _expiry_is_whole(self) -> "Upload":
        if (self.anchor is None) != (self.seconds is None):
            missing = "anchor" if self.anchor is None else "seconds"
            raise wrong(f"expires_after[{missing}]", "required when the other one is given")
        return self

    @property
    def kept_for(self) -> timedelta:
        """Until it expires."""
        return KEPT_FOR if self.seconds is None else timedelta(seconds=self.seconds)


class FileFilters(BaseModel):
    """The query of `GET /v1/files`."""

    model_config = ConfigDict(frozen=True)

    purpose: Annotated[str, Field(max_length=64), without_nul] | None = None
    after: str | None = None
    """The last file of the page before."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"


def _form() -> dict[str, Any]:
    schema = Upload.model_json_schema()
    schema["properties"]["file"] = {"type": "string", "format": "binary"}
    schema["required"].append("file")
    return schema


UPLOAD: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _form()}}}
}
"""The `openapi_extra` of an upload."""

_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string"}}}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole content.", "content": _BYTES},
    206: {"description": "The part that `Range` asks for.", "content": _BYTES},
}
"""The `responses` of a file's content."""


def file_object(file: File) -> dict[str, Any]:
    """A file, as OpenAI shows it; of what is wrong with it `status_details` tells the first."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": clock.seconds(file.created_at),
        "expires_at": clock.seconds(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.status_details,
    }
