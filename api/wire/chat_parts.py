"""Content parts: what a message may hold beside plain text, by role."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, Tag, model_validator

from api.parse import by_field, by_kind, wrong
from api.wire.shapes import Strict

Uri = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z][a-zA-Z0-9+.-]*:.")]


class CacheBreakpoint(Strict):
    """Marks the end of a prompt prefix that is worth caching."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class CacheablePart(Strict):
    """A part after which a cache breakpoint may stand."""

    prompt_cache_breakpoint: CacheBreakpoint | None = None


class TextPart(CacheablePart):
    """Text."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """Where the image is, or the image itself in a `data:` URL. Only the upstream ever opens it."""

    url: Uri
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(CacheablePart):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Strict):
    """Audio in base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(CacheablePart):
    """Something said."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class FileContent(Strict):
    """A file, by the upstream's id or in base64."""

    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None

    @model_validator(mode="after")
    def _given(self) -> "FileContent":
        if self.file_id is None and self.file_data is None:
            raise wrong("file_id", "a file needs 'file_id' or 'file_data'")
        return self


class FilePart(CacheablePart):
    """A file."""

    type: Literal["file"]
    file: FileContent


class RefusalPart(Strict):
    """What the model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


Text = Annotated[TextPart, Tag("<text>")]
Image = Annotated[ImagePart, Tag("<image_url>")]
Audio = Annotated[AudioPart, Tag("<input_audio>")]
File = Annotated[FilePart, Tag("<file>")]
Refusal = Annotated[RefusalPart, Tag("<refusal>")]

# One member is no union to pydantic, so a lone kind of part names its `type` by its literal.
TextParts = Annotated[
    list[TextPart], Field(min_length=1, max_length=2_000, fail_fast=True), Tag("<array>")
]
UserParts = Annotated[
    list[
        Annotated[
            Text | Image | Audio | File,
            by_field("type", "text", "image_url", "input_audio", "file"),
        ]
    ],
    Field(min_length=1, max_length=2_000, fail_fast=True),
    Tag("<array>"),
]
AssistantParts = Annotated[
    list[Annotated[Text | Refusal, by_field("type", "text", "refusal")]],
    Field(min_length=1, max_length=2_000, fail_fast=True),
    Tag("<array>"),
]

String = Annotated[str, Tag("<string>")]
string_or_parts = by_kind("a string or an array of content parts")
TextContent = Annotated[String | TextParts, string_or_parts]
UserContent = Annotated[String | UserParts, string_or_parts]
AssistantContent = Annotated[String | AssistantParts, string_or_parts]
