"""The smaller objects a completion request may carry: sound, prediction, search, moderation, …"""

from typing import Annotated, Literal

from pydantic import Field, Tag

from api.parse import by_kind
from api.wire.chat_parts import String, TextContent
from api.wire.shapes import Strict

Biases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(fail_fast=True)]
"""Token → bias. OpenAI documents integers; it and its kin take any number in the range."""

Stop = Annotated[
    String
    | Annotated[list[str], Field(min_length=1, max_length=4, fail_fast=True), Tag("<array>")],
    by_kind("a string or an array of up to 4 strings"),
]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)]


class StreamOptions(Strict):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CustomVoice(Strict):
    """A voice of the caller's own."""

    id: Annotated[str, Field(min_length=1)]


class AudioOptions(Strict):
    """How a spoken answer sounds."""

    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]
    voice: Annotated[
        String | Annotated[CustomVoice, Tag("<object>")],
        by_kind("a string or an object with an 'id'"),
    ]


class Prediction(Strict):
    """Text of which much will come back unchanged."""

    type: Literal["content"]
    content: TextContent


class CacheOptions(Strict):
    """How the upstream caches the prompt's prefix."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class Place(Strict):
    """Roughly where the user is."""

    city: str | None = None
    country: str | None = None
    region: str | None = None
    timezone: str | None = None


class UserLocation(Strict):
    """Where a web search starts from."""

    type: Literal["approximate"]
    approximate: Place


class WebSearchOptions(Strict):
    """How the model may search the web."""

    search_context_size: Literal["low", "medium", "high"] | None = None
    user_location: UserLocation | None = None


class ModerationMode(Strict):
    """Whether a finding is only reported, or stops the answer."""

    mode: Literal["score", "block"]


class ModerationPolicy(Strict):
    """What to do about the prompt, and about the answer."""

    input: ModerationMode | None = None
    output: ModerationMode | None = None


class Moderation(Strict):
    """The moderation of this request by the upstream."""

    model: str
    policy: ModerationPolicy | None = None
