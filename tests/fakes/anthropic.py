"""A scripted server that speaks Anthropic's Messages API; scripts as in `tests.fakes.upstream`.

    with ScriptedAnthropic() as upstream:
        upstream.script("claude", Usage(11, 7), Reasoning("Hm."), signed("abc"), Say("Hello"))

`Usage` comes first, because the first event has counts in it; `more` there is Anthropic's names.
A `Chunk` is any event, in the block that is open.
"""

from typing import Any

import orjson
from aiohttp import web

from tests.fakes.upstream import (
    Answer,
    Call,
    Chunk,
    End,
    ErrorInBand,
    Finish,
    Reset,
    ScriptedUpstream,
    Stall,
)

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def signed(signature: str) -> Chunk:
    """The signature of the thoughts just said."""
    return Chunk(
        {
            "type": "content_block_delta",
            "delta": {"type": "signature_delta", "signature": signature},
        }
    )


class ScriptedAnthropic(ScriptedUpstream):
    """The server."""

    path = "/{base:.+}/messages"

    def answer(self, request: web.Request, call: Call) -> Answer:
        return _Message(request, call)


class _Message(Answer):
    """What a script says, as events: a block for as long as the same kind of thing is said."""

    index = -1
    kind: str | None = None

    async def _open(self, _: int = 0) -> None:
        if not self.opened:
            self.opened.add(0)
            usage = dict(self.usage or {})
            counts = {"input_tokens": usage.pop("prompt_tokens", 0), "output_tokens": 1}
            for name in ("completion_tokens", "total_tokens"):
                usage.pop(name, None)
            message = {"id": "msg_fake", "type": "message", "role": "assistant", "content": []}
            await self._event("message_start", message=message | {"usage": counts | usage})

    async def _delta(self, choice: int, delta: dict[str, Any], **more: Any) -> None:
        self.said += 1
        if calls := delta.get("tool_calls"):
            function = calls[0]["function"]
            if name := function.get("name"):
                block = {"type": "tool_use", "id": calls[0]["id"], "name": name, "input": {}}
                await self._begin(f"tool {calls[0]['id']}", block)
            said = {"type": "input_json_delta", "partial_json": function["arguments"]}
        elif (text := delta.get("content")) is not None:
            await self._begin("text", {"type": "text", "text": ""})
            said = {"type": "text_delta", "text": text}
        else:
            await self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            said = {"type": "thinking_delta", "thinking": delta["reasoning_content"]}
        await self._event("content_block_delta", index=self.index, delta=said)

    async def _begin(self, kind: str, block: dict[str, Any]) -> None:
        await self._open()
        if self.kind != kind:
            await self._close_block()
            self.kind, self.index = kind, self.index + 1
            await self._event("content_block_start", index=self.index, content_block=block)

    async def _close_block(self) -> None:
        if self.kind is not None:
            self.kind = None
            await self._event("content_block_stop", index=self.index)

    async def _finish(self, step: Finish) -> None:
        await self._open()
        await self._close_block()
        reason = STOP_REASONS.get(step.reason, step.reason)
        spoken = (self.usage or {}).get("completion_tokens", self.said)
        ended = {"stop_reason": reason, "stop_sequence": None}
        await self._event("message_delta", delta=ended, usage={"output_tokens": spoken})
        self.finished.add(0)

    async def _conclude(self) -> web.StreamResponse:
        if not self.finished:
            await self._finish(Finish())
        await self._event("message_stop")
        return await self._eof("done")

    async def _break_off(self, step: ErrorInBand | Reset | End | Stall) -> web.StreamResponse:
        if isinstance(step, ErrorInBand):
            await self._event("error", error=step.error)
            return await self._eof("error")
        return await super()._break_off(step)

    async def _chunk(self, fields: dict[str, Any]) -> None:
        await self._open()
        place = {"index": self.index} if "delta" in fields else {}
        await self._event(**place | fields)

    async def _event(self, type: str, **fields: Any) -> None:
        self.call.deltas += 1
        data = orjson.dumps({"type": type, **fields})
        await self._write(b"event: " + type.encode() + b"\ndata: " + data + b"\n\n")
