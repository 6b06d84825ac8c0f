"""The messages of a conversation, one shape per role."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, Tag, model_validator

from api.parse import by_field, wrong
from api.wire.chat_parts import AssistantContent, TextContent, UserContent
from api.wire.shapes import Name, Strict

Participant = Annotated[str, StringConstraints(pattern=r"^[^\s<|\\/>]{1,64}$")]


class InstructionMessage(Strict):
    """What the developer, or the system, tells the model."""

    role: Literal["developer", "system"]
    content: TextContent
    name: Participant | None = None


class UserMessage(Strict):
    """What the user says and shows."""

    role: Literal["user"]
    content: UserContent
    name: Participant | None = None


class FunctionCall(Strict):
    """A function and its arguments as the model wrote them, which need not be valid JSON."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class FunctionToolCall(Strict):
    """The model asked for a function."""

    type: Literal["function"]
    id: Annotated[str, Field(min_length=1)]
    function: FunctionCall


class CustomCall(Strict):
    """A custom tool and what the model handed it."""

    name: Annotated[str, Field(min_length=1)]
    input: str


class CustomToolCall(Strict):
    """The model asked for a custom tool."""

    type: Literal["custom"]
    id: Annotated[str, Field(min_length=1)]
    custom: CustomCall


ToolCall = Annotated[
    Annotated[FunctionToolCall, Tag("<function>")] | Annotated[CustomToolCall, Tag("<custom>")],
    by_field("type", "function", "custom"),
]


class PastAudio(Strict):
    """Audio the model gave in an earlier answer."""

    id: Annotated[str, Field(min_length=1)]


class AssistantMessage(Strict):
    """What the model said or asked for earlier."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    name: Participant | None = None
    refusal: str | None = None
    audio: PastAudio | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None
    function_call: FunctionCall | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "AssistantMessage":
        if self.content is None and not (
            self.tool_calls or self.function_call or self.refusal is not None or self.audio
        ):
            raise wrong(
                "content",
                "an assistant message needs content unless it has 'tool_calls', 'function_call',"
                " 'refusal' or 'audio'",
            )
        return self


class ToolMessage(Strict):
    """What a tool gave back."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: Annotated[str, Field(min_length=1)]


class FunctionMessage(Strict):
    """What a function gave back, before there were tools."""

    role: Literal["function"]
    name: Name
    content: str | None


Message = Annotated[
    Annotated[InstructionMessage, Tag("<developer>")]
    | Annotated[InstructionMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")]
    | Annotated[FunctionMessage, Tag("<function>")],
    by_field("role", "developer", "system", "user", "assistant", "tool", "function"),
]
Messages = Annotated[list[Message], Field(min_length=1, max_length=2_000, fail_fast=True)]
