"""The events of an answer of Anthropic's Messages API, as deltas."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from shared.errors import UpstreamDisconnected, UpstreamError
from workers.upstreams import failures
from workers.upstreams.lines import SSELines
from workers.upstreams.protocol import Delta, line

FINISH_REASONS: Final = {
    "end_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "stop",
    "refusal": "content_filter",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
}
"""What a `stop_reason` is called on OpenAI's wire; one of next year is a `stop`."""


class MessageEvents:
    """Reads one answer. Blocks and events it does not know are passed over.

    Thoughts are said as `reasoning_content` while they come. They are also kept as blocks with
    their signatures, which leave with the finish reason as `thinking_blocks`: the model wants them
    back verbatim beside the tool calls they led to.
    """

    def __init__(self, secret: str | None) -> None:
        self.done = False
        self.failure: UpstreamError | None = None
        self._secret = secret
        self._lines = SSELines()
        self._thoughts: dict[int, dict[str, Any]] = {}
        self._calls: dict[int, _Call] = {}
        self._counts: dict[str, Any] = {}
        self._ending: dict[str, Any] = {}

    @property
    def complete(self) -> bool:
        """Only the last event says that all is said."""
        return self.done

    def feed(self, piece: bytes) -> list[Delta]:
        """The deltas this piece completes; an empty piece is the end. A failure is noted."""
        deltas: list[Delta] = []
        try:
            for payload in self._lines.feed(piece) if piece else self._lines.end():
                if self.done:
                    break
                if (delta := self.take(orjson.loads(payload))) is not None:
                    deltas.append(delta)
        except UpstreamError as error:
            self.failure = error
        except (AttributeError, KeyError, TypeError, ValueError):
            # What was cut off by the end of the stream is no event: `check_ending` tells.
            if piece:
                self.failure = UpstreamError("The upstream sent what is not an event.")
        return deltas

    def check_ending(self) -> None:
        """Raise `UpstreamDisconnected` if the last event is missing."""
        if not self.done:
            raise UpstreamDisconnected("The upstream's stream ended before its message did.")

    def take(self, event: dict[str, Any]) -> Delta | None:
        """An event as a delta; None when it says nothing. Raises `UpstreamError` if it is one."""
        match event["type"]:
            case "content_block_delta":
                return self._continue(event["index"], event["delta"])
            case "content_block_start":
                return self._begin(event["index"], event["content_block"])
            case "content_block_stop":
                return self._end(event["index"])
            case "message_start":
                self._count(event["message"].get("usage"))
                # A job that is cancelled later pays for its prompt by what was counted here.
                return _delta({"role": "assistant", "content": ""}, usage=self._usage())
            case "message_delta":
                self._count(event.get("usage"))
                self._ending.update(_given(event["delta"]))
            case "message_stop":
                return self._finish()
            case "error":
                raise failures.in_band(event.get("error") or event, secret=self._secret)
        return None

    def _begin(self, index: int, block: dict[str, Any]) -> Delta | None:
        match block["type"]:
            case "text":
                return _said("content", block["text"])
            case "thinking":
                signature = block.get("signature") or ""
                thought = {"type": "thinking", "thinking": block["thinking"]}
                self._thoughts[index] = thought | {"signature": signature}
                return _said("reasoning_content", block["thinking"])
            case "redacted_thinking":
                self._thoughts[index] = block
            case "tool_use":
                call = self._calls[index] = _Call(len(self._calls), block)
                return call.opening()
        return None

    def _continue(self, index: int, delta: dict[str, Any]) -> Delta | None:
        match delta["type"]:
            case "text_delta":
                return _said("content", delta["text"])
            case "input_json_delta" if index in self._calls:
                return self._calls[index].more(delta["partial_json"])
            case "thinking_delta":
                self._thoughts[index]["thinking"] += delta["thinking"]
                return _said("reasoning_content", delta["thinking"])
            case "signature_delta":
                self._thoughts[index]["signature"] += delta["signature"]
            case "citations_delta":
                return _delta({"citations": [delta["citation"]]})
        return None

    def _end(self, index: int) -> Delta | None:
        call = self._calls.get(index)
        return call.closing() if call is not None else None

    def _finish(self) -> Delta:
        reason = self._ending.get("stop_reason")
        if reason is None:
            raise UpstreamDisconnected("The upstream's message ended without a stop reason.")
        said: dict[str, Any] = {}
        if explained := (self._ending.get("stop_details") or {}).get("explanation"):
            said["refusal"] = explained
        if self._thoughts:
            said["thinking_blocks"] = [self._thoughts[index] for index in sorted(self._thoughts)]
        self.done = True
        return _delta(
            said,
            finish_reason=FINISH_REASONS.get(reason, "stop"),
            native_finish_reason=reason,
            usage=self._usage(),
        )

    def _count(self, usage: dict[str, Any] | None) -> None:
        # Some servers count the prompt in the first event, some in the last; zero is a count too.
        self._counts.update(_given(usage or {}))

    def _usage(self) -> dict[str, Any] | None:
        return openai_usage(self._counts) if self._counts else None


class _Call:
    """A tool call as it is said: opened by name, its arguments in pieces."""

    def __init__(self, number: int, block: dict[str, Any]) -> None:
        self._number = number
        self._block = block
        self._silent = True

    def opening(self) -> Delta:
        function = {"name": _text(self._block["name"]), "arguments": ""}
        return self._delta(id=_text(self._block["id"]), type="function", function=function)

    def more(self, piece: str) -> Delta | None:
        if not _text(piece):
            return None
        self._silent = False
        return self._delta(function={"arguments": piece})

    def closing(self) -> Delta | None:
        """The arguments that came with the name, or none at all, as the JSON that they are."""
        return self.more(orjson.dumps(self._block["input"]).decode()) if self._silent else None

    def _delta(self, **part: Any) -> Delta:
        return _delta({"tool_calls": [{"index": self._number, **part}]})


def openai_usage(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Anthropic's counts in OpenAI's shape: there the cache is beside the input, here within.

    `cache_write_tokens`, and its two parts by lifetime, are beyond OpenAI's: each has its price.
    """
    fresh, read, written, said = (
        _number(counts.get(name) or 0)
        for name in (
            "input_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "output_tokens",
        )
    )
    prompt = fresh + read + written
    details = {"cached_tokens": read, "cache_write_tokens": written}
    for name, tokens in (counts.get("cache_creation") or {}).items():
        if name.startswith("ephemeral_"):
            span = name.removeprefix("ephemeral_").removesuffix("_input_tokens")
            details[f"cache_write_{span}_tokens"] = _number(tokens)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": details,
    }
    thought = (counts.get("output_tokens_details") or {}).get("thinking_tokens")
    if thought is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": _number(thought)}
    return usage


def _said(name: str, text: str) -> Delta | None:
    return _delta({name: text}) if _text(text) else None


def _delta(
    delta: dict[str, Any],
    *,
    finish_reason: str | None = None,
    usage: dict[str, Any] | None = None,
    **more: Any,
) -> Delta:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason, **more}]
    return Delta(choices, [line({"choices": choices})], usage)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("not a text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value
