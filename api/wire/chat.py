"""OpenAI's chat completion request in full, and the few fields that are ours."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from api.parse import wrong
from api.wire.chat_messages import Messages
from api.wire.chat_options import (
    AudioOptions,
    Biases,
    CacheOptions,
    Modalities,
    Moderation,
    Prediction,
    Stop,
    StreamOptions,
    WebSearchOptions,
)
from api.wire.chat_tools import (
    AllowedToolsChoice,
    CustomChoice,
    CustomTool,
    FunctionChoice,
    LegacyChoice,
    LegacyFunctions,
    Named,
    ResponseFormat,
    ToolChoice,
    Tools,
)
from api.wire.shapes import Closed, Metadata, ModelName, Strict, without_nul
from api.wire.webhooks import Webhook
from shared import chat

Penalty = Annotated[float, Field(ge=-2, le=2)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Label = Annotated[str, StringConstraints(max_length=512), without_nul]


class ChatCompletionRequest(Strict):
    """The body of `POST /v1/chat/completions`."""

    OURS: ClassVar[frozenset[str]] = chat.OURS
    """Fields that end here."""

    model: ModelName
    messages: Messages

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    """Choices to make. OpenAI allows 128; eight bound what one job can cost."""
    stop: Stop | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    verbosity: Literal["low", "medium", "high"] | None = None

    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: LegacyFunctions | None = None
    function_call: LegacyChoice | None = None

    response_format: ResponseFormat | None = None
    modalities: Modalities | None = None
    audio: AudioOptions | None = None
    prediction: Prediction | None = None
    web_search_options: WebSearchOptions | None = None
    moderation: Moderation | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: Label | None = None
    user: Label | None = None
    metadata: Metadata | None = None
    store: bool | None = None

    background: bool | None = None
    """Answer 202 at once."""
    on_disconnect: Literal["cancel", "continue"] | None = None
    """What becomes of the job when its last reader leaves; None is the default of the form."""
    drop_unsupported: bool | None = None
    """Leave out what only steers the answer where a model lacks it, instead of refusing."""
    webhook: Webhook | None = None
    """Who is told of its end."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatCompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "only allowed when 'stream' is true")
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "only allowed when 'logprobs' is true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise wrong("max_tokens", "cannot be set together with 'max_completion_tokens'")
        if self.modalities is not None and "audio" in self.modalities and self.audio is None:
            raise wrong("audio", "required when 'modalities' contains 'audio'")
        if self.tool_choice is not None:
            self._chosen_tools_exist()
        if isinstance(self.function_call, Named):
            offered = {function.name for function in self.functions or ()}
            if self.function_call.name not in offered:
                raise wrong("function_call.name", "names a function that is not in 'functions'")
        return self

    def _chosen_tools_exist(self) -> None:
        offered = {
            tool.custom.name if isinstance(tool, CustomTool) else tool.function.name
            for tool in self.tools or ()
        }
        match self.tool_choice:
            case "required" if not offered:
                raise wrong("tool_choice", "'required' is only allowed when 'tools' are given")
            case FunctionChoice(function=named) if named.name not in offered:
                raise wrong("tool_choice.function.name", "names a tool that is not in 'tools'")
            case CustomChoice(custom=named) if named.name not in offered:
                raise wrong("tool_choice.custom.name", "names a tool that is not in 'tools'")
            case AllowedToolsChoice(allowed_tools=allowed):
                for number, choice in enumerate(allowed.tools):
                    named = choice.custom if isinstance(choice, CustomChoice) else choice.function
                    if named.name not in offered:
                        field = f"tool_choice.allowed_tools.tools[{number}]"
                        raise wrong(field, "names a tool that is not in 'tools'")

    def upstream_body(self, raw: dict[str, Any]) -> dict[str, Any]:
        """What the upstream gets of `raw`, the JSON this request was made from."""
        return chat.upstream_body(raw, self.OURS)


class MetadataUpdate(Closed):
    """The body of `POST /v1/chat/completions/{id}`; null takes all metadata away."""

    metadata: Metadata | None
