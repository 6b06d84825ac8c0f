"""The answer of a server that speaks OpenAI's dialect: chunks, or one whole body, into deltas."""

from collections.abc import Callable
from typing import Any, Final

import orjson

from shared.errors import UpstreamDisconnected, UpstreamError
from workers.upstreams import failures
from workers.upstreams.calls import Reader
from workers.upstreams.lines import LIMIT, SSELines
from workers.upstreams.protocol import Delta, line
from workers.upstreams.texts import Texts, is_text

OURS: Final = frozenset({"id", "object", "created", "model", "obfuscation", "usage"})
"""Fields of a chunk that we say ourselves, or that only blur its length."""
STEADY: Final = frozenset({"service_tier", "system_fingerprint"})
"""Fields that are no news in a chunk without choices."""


def reader_for(n: int, secret: str | None) -> Callable[[str], Reader]:
    """Reads an answer of `n` choices by its content type; `secret` is never part of a message."""

    def choose(content_type: str) -> Reader:
        kind = ChatBody if content_type == "application/json" else ChatEvents
        return kind(n, secret)

    return choose


COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")


class _Chunks:
    """Turns chunks into deltas, and remembers what they say about the end."""

    def __init__(self, n: int, secret: str | None) -> None:
        self.done = False
        self.failure: UpstreamError | None = None
        self._n = n
        self._secret = secret
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._calls: dict[int, _CallNumbers] = {}
        self._untold: dict[str, Any] = {}

    @property
    def complete(self) -> bool:
        """Whether each choice that was asked for has its finish reason."""
        return len(self._finished) >= self._n and self._finished == self._seen

    def check_ending(self) -> None:
        """Raise `UpstreamDisconnected` if the model did not say why it ended.

        After `[DONE]` fewer choices than were asked for are accepted: not all servers know `n`.
        """
        enough = self.complete or (self.done and self._finished == self._seen)
        if not enough or not self._finished:
            raise UpstreamDisconnected("The upstream's stream ended without a finish reason.")

    def take(self, chunk: dict[str, Any]) -> Delta | None:
        """A chunk as a delta; None when nothing is in it. Raises `UpstreamError` if it is one."""
        if error := _error_in(chunk):
            raise failures.in_band(error, secret=self._secret)
        usage = _counts(chunk["usage"]) if "usage" in chunk else None
        choices = chunk.get("choices") or []
        for choice in choices:
            self._note(choice)
        theirs = {name: value for name, value in chunk.items() if name not in OURS}
        if choices and self._untold:
            theirs, self._untold = {**theirs, **self._untold}, {}
        extra = {name: theirs[name] for name in theirs if name != "choices"}
        if choices:
            return Delta(choices, [line(theirs)], usage, extra or None)
        if usage:
            # Asked for by us, not by the caller, whatever else its server puts into it.
            return Delta([], [], usage, extra or None)
        if any(extra[name] is not None for name in extra.keys() - STEADY):
            # Clients read `choices[0]` of every chunk: the next that has one tells this as well.
            self._untold = extra
            return Delta([], [], None, extra)
        return None

    def _note(self, choice: dict[str, Any]) -> None:
        index = choice.get("index") or 0
        if is_text(choice):
            self._seen.add(index)
            return
        if not _well_formed(choice):
            raise TypeError("not a choice")
        self._seen.add(index)
        choice["delta"] = _plain(choice.get("delta") or {})
        for call in choice["delta"].get("tool_calls") or ():
            call["index"] = self._calls.setdefault(index, _CallNumbers()).of(call)
        if reason := choice.get("finish_reason"):
            if reason == "error":
                raise UpstreamError("The upstream ended with finish_reason 'error'.")
            self._finished.add(index)


class _CallNumbers:
    """Numbers the tool calls of one choice, which SDKs tell apart by nothing else.

    Some servers give their calls no number, or all the same one.
    """

    def __init__(self) -> None:
        self._ids: dict[int, str | None] = {}
        self._places: dict[int | None, int] = {}

    def of(self, call: dict[str, Any]) -> int:
        """The number of the call that this part belongs to: its own wherever that is free."""
        theirs, call_id = call.get("index"), call.get("id") or None
        number = self._places.get(theirs)
        if theirs is None and call_id is not None:
            number = next((n for n, known in self._ids.items() if known == call_id), number)
        if number is None or self._another(call, number):
            number = max(self._ids, default=-1) + 1
            if theirs is not None and theirs not in self._ids:
                number = theirs
            self._ids[number] = call_id
        self._places[theirs] = number
        return number

    def _another(self, call: dict[str, Any], number: int) -> bool:
        if not (call.get("function") or call.get("custom") or {}).get("name"):
            return False
        known, call_id = self._ids[number], call.get("id") or None
        if call.get("index") is None:
            return call_id is None or known != call_id
        return call_id is not None and known not in (None, call_id)


class ChatEvents(_Chunks):
    """The usual answer: events, a chunk each, then `[DONE]`."""

    def __init__(self, n: int, secret: str | None) -> None:
        super().__init__(n, secret)
        self._lines = SSELines()
        self._texts = Texts()

    def feed(self, piece: bytes) -> list[Delta]:
        """The deltas this piece completes; an empty piece is the end. A failure is noted."""
        deltas: list[Delta] = []
        try:
            payloads = self._lines.feed(piece) if piece else self._lines.end()
            for payload in self._texts.others(payloads):
                deltas += self._texts.gathered()
                if payload.startswith(b"[DONE]"):
                    self.done = True
                    break
                if (delta := self.take(orjson.loads(payload))) is not None:
                    deltas.append(delta)
                    self._texts.learn(payload, delta)
        except UpstreamError as error:
            self.failure = error
        except (AttributeError, TypeError, ValueError):
            # What was cut off by the end of the stream is no chunk either: `check_ending` tells.
            if piece:
                self.failure = UpstreamError("The upstream sent what is not a chunk.")
        return deltas + self._texts.gathered()


class ChatBody(_Chunks):
    """The answer of a server that ignores `stream`: one JSON body."""

    def __init__(self, n: int, secret: str | None) -> None:
        super().__init__(n, secret)
        self._body = bytearray()

    def feed(self, piece: bytes) -> list[Delta]:
        """Nothing until the end of the body, then all of it. A failure is noted."""
        self._body += piece
        try:
            if len(self._body) > LIMIT:
                raise UpstreamError(f"The upstream sent a body of more than {LIMIT} bytes.")
            return [] if piece else self._deltas(orjson.loads(self._body))
        except UpstreamError as error:
            self.failure = error
        except (AttributeError, KeyError, TypeError, ValueError):
            self.failure = UpstreamError("The upstream sent what is not a completion.")
        return []

    def _deltas(self, completion: dict[str, Any]) -> list[Delta]:
        if "choices" not in completion:
            self.take(completion)
            raise KeyError("choices")
        said, ended = [], []
        for place, choice in enumerate(completion["choices"]):
            index = choice.get("index", place)
            delta = _as_delta(choice.pop("message"))
            ended.append({"index": index, "delta": {}, "finish_reason": choice["finish_reason"]})
            said.append({**choice, "index": index, "delta": delta, "finish_reason": None})
        last = {"choices": ended, "usage": completion.pop("usage", None)}
        taken = [self.take({**completion, "choices": said}), self.take(last)]
        return [delta for delta in taken if delta is not None]


def _error_in(chunk: dict[str, Any]) -> Any:
    """The error that a chunk carries, or is."""
    bare = "choices" not in chunk and "message" in chunk
    return chunk.get("error") or (chunk if bare else None)


def _well_formed(choice: dict[str, Any]) -> bool:
    """Whether those who read the delta will find the types they count on; raises if far from it."""
    delta = choice.get("delta")
    objects = [delta, choice.get("logprobs")]
    places = [choice.get("index")]
    if delta:
        objects.append(delta.get("function_call"))
        for call in delta.get("tool_calls") or ():
            objects += (call.get("function"), call.get("custom"))
            places.append(call.get("index"))
    reason = choice.get("finish_reason")
    return (
        all(value is None or type(value) is dict for value in objects)
        and all(place is None or type(place) is int for place in places)
        and (reason is None or type(reason) is str)
    )


def _plain(delta: dict[str, Any]) -> dict[str, Any]:
    """A delta without null content, which clients print; one that opens a text has none yet."""
    if delta.get("content", "") is not None:
        return delta
    opens = "role" in delta and not delta.get("tool_calls")
    said = {name: value for name, value in delta.items() if name != "content"}
    return {**said, "content": ""} if opens else said


def _as_delta(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]}


def _counts(usage: Any) -> dict[str, Any] | None:
    """A usage object whose counts are whole numbers; None for one that counts nothing."""
    if not isinstance(usage, dict):
        return None
    counts = {name: usage[name] for name in COUNTS if isinstance(usage.get(name), int | float)}
    return {**usage, **{name: int(count) for name, count in counts.items()}} if counts else None
