"""Tools on offer, the choice among them, and the form an answer must have."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from api.parse import by_field, by_kind
from api.wire.shapes import Name, ObjectSchema, Schema, Strict


class FunctionDefinition(Strict):
    """A function the model may ask for."""

    name: Name
    description: str | None = None
    parameters: ObjectSchema | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    """A function as a tool."""

    type: Literal["function"]
    function: FunctionDefinition


class TextFormat(Strict):
    """A custom tool's input is free text."""

    type: Literal["text"]


class Grammar(Strict):
    """A grammar that a custom tool's input follows."""

    syntax: Literal["lark", "regex"]
    definition: str


class GrammarFormat(Strict):
    """A custom tool's input follows a grammar."""

    type: Literal["grammar"]
    grammar: Grammar


class CustomDefinition(Strict):
    """A tool that takes text instead of JSON arguments."""

    name: Name
    description: str | None = None
    format: (
        Annotated[
            Annotated[TextFormat, Tag("<text>")] | Annotated[GrammarFormat, Tag("<grammar>")],
            by_field("type", "text", "grammar"),
        ]
        | None
    ) = None


class CustomTool(Strict):
    """A custom tool."""

    type: Literal["custom"]
    custom: CustomDefinition


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[CustomTool, Tag("<custom>")],
    by_field("type", "function", "custom"),
]
Tools = Annotated[list[Tool], Field(max_length=128, fail_fast=True)]


class Named(Strict):
    """A tool by its name."""

    name: Name


class FunctionChoice(Strict):
    """The model must call this function."""

    type: Literal["function"]
    function: Named


class CustomChoice(Strict):
    """The model must call this custom tool."""

    type: Literal["custom"]
    custom: Named


Choice = Annotated[
    Annotated[FunctionChoice, Tag("<function>")] | Annotated[CustomChoice, Tag("<custom>")],
    by_field("type", "function", "custom"),
]


class AllowedTools(Strict):
    """The tools the model may choose from in this turn."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[Choice], Field(min_length=1, max_length=128, fail_fast=True)]


class AllowedToolsChoice(Strict):
    """The model may choose, from fewer tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[
        Annotated[FunctionChoice, Tag("<function>")]
        | Annotated[CustomChoice, Tag("<custom>")]
        | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
        by_field("type", "function", "custom", "allowed_tools"),
        Tag("<object>"),
    ],
    by_kind("'none', 'auto', 'required' or an object that names a tool"),
]


class LegacyFunction(Strict):
    """A function the model may ask for, before there were tools."""

    name: Name
    description: str | None = None
    parameters: ObjectSchema | None = None


LegacyFunctions = Annotated[
    list[LegacyFunction], Field(min_length=1, max_length=128, fail_fast=True)
]
LegacyChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag("<string>")] | Annotated[Named, Tag("<object>")],
    by_kind("'none', 'auto' or an object that names a function"),
]


class TextAnswer(Strict):
    """Anything."""

    type: Literal["text"]


class JsonAnswer(Strict):
    """Some JSON object."""

    type: Literal["json_object"]


class AnswerSchema(Strict):
    """The schema an answer must follow."""

    name: Name
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class SchemaAnswer(Strict):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: AnswerSchema


ResponseFormat = Annotated[
    Annotated[TextAnswer, Tag("<text>")]
    | Annotated[JsonAnswer, Tag("<json_object>")]
    | Annotated[SchemaAnswer, Tag("<json_schema>")],
    by_field("type", "text", "json_object", "json_schema"),
]
