"""The AINative dialect's request: OpenAI's, with a `system` string and defaults of its own."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from api.wire.chat import ChatCompletionRequest
from shared import features

TEMPERATURE = 0.7
MAX_TOKENS = 1024


class PublicCompletionRequest(ChatCompletionRequest):
    """The body of `POST /v1/public/chat/completions`."""

    OURS: ClassVar[frozenset[str]] = ChatCompletionRequest.OURS | {"system"}

    system: str | None = None
    """Said before all messages; those of the role `system` follow it."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """None means 0.7."""

    def upstream_body(self, raw: dict[str, Any]) -> dict[str, Any]:
        """What the upstream gets of `raw`: OpenAI's spelling, this dialect's defaults filled in."""
        body = super().upstream_body(raw)
        if self.system:
            body["messages"] = [{"role": "system", "content": self.system}, *body["messages"]]
        if self.temperature is None:
            body["temperature"] = TEMPERATURE
            body[features.DROP] = body.get(features.DROP) or ["temperature"]
        if self.max_tokens is None and self.max_completion_tokens is None:
            body["max_tokens"] = MAX_TOKENS
        return body
