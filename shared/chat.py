"""Chat as it goes in and out: what an upstream is sent, and its deltas back into one answer."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

ATOMIC: Final = frozenset({"role", "id", "type", "name", "index"})
"""Strings that are said whole; said again they are the same, not more."""
ENVELOPE: Final = frozenset({"id", "object", "created", "model", "choices", "usage"})
OURS: Final = frozenset({"background", "on_disconnect", "metadata", "store", "stream", "webhook"})
"""Fields that end here: how to wait, and what stored completions are (we keep those)."""


def upstream_body(raw: Mapping[str, Any], ours: frozenset[str] = OURS) -> dict[str, Any]:
    """What the upstream gets of a request's JSON, value for value.

    Everything the caller sent, known to us or not, except the fields that end here (`ours`) and
    `stream_options.include_usage`: the worker always streams and always asks for usage. `metadata`
    and `store` end here because stored completions are ours to serve.
    """
    body = {field: value for field, value in raw.items() if field not in ours}
    options = body.pop("stream_options", None) or {}
    options = {name: value for name, value in options.items() if name != "include_usage"}
    return {**body, "stream_options": options} if options else body


class Transcript:
    """What a model has said so far in the `n` choices that were asked for."""

    def __init__(self) -> None:
        self.ended = False
        """A choice has said why it ends: what is left comes at once."""
        self.spoke = False
        """Something was said that a reader cannot unsee: any delta but a role or emptiness."""
        self.characters = 0
        """Letters of content, reasoning, refusals and tool arguments, in all choices."""
        self._choices: dict[int, _Choice] = {}
        self._extra: dict[str, Any] = {}

    def add(
        self, choices: Iterable[Mapping[str, Any]], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Take in a chunk's `choices`, and what else stood in the chunk; nothing is lost.

        Strings grow, lists are extended, objects merge; of anything else the last one stands.
        """
        for choice in choices:
            index = choice.get("index") or 0
            known = self._choices.get(index)
            if known is None:
                known = self._choices[index] = _Choice()
            known.add(choice)
            self.ended = self.ended or bool(choice.get("finish_reason"))
            if delta := choice.get("delta"):
                text = delta.get("content") if len(delta) == 1 else None
                if type(text) is str:  # as in most
                    self.spoke = self.spoke or text != ""
                    self.characters += len(text)
                else:
                    self.spoke = self.spoke or _speaks(delta)
                    self.characters += _letters(delta)
        for name, value in (extra or {}).items():
            if value is not None and name not in ENVELOPE:
                self._extra[name] = value

    def choices(self) -> list[dict[str, Any]]:
        """OpenAI's `choices` by index; `finish_reason` is None where the model has not ended."""
        return [self._choices[index].plain(index) for index in sorted(self._choices)]

    def completion(
        self,
        *,
        id: str,
        created: int,
        model: str,
        usage: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The whole `chat.completion`; `created` in Unix seconds, `extra` over the chunks' own."""
        envelope = {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": self.choices(),
            "usage": usage,
        }
        return {**envelope, **self._extra, **(extra or {}), **envelope}


class _Text(list[str]):
    """The pieces of a string, joined once, when it is asked for."""


class _Choice:
    """One choice as it grows."""

    __slots__ = ("calls", "fields", "logprobs", "message")

    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.calls = _Calls()
        self.logprobs: dict[str, Any] | None = None
        self.fields: dict[str, Any] = {"finish_reason": None}

    def add(self, choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if value is None or name == "index":
                continue
            if name == "delta":
                self._hear(value)
            elif name == "logprobs":
                if self.logprobs is None:
                    self.logprobs = {}
                _merge(self.logprobs, value)
            elif isinstance(value, list) and isinstance(known := self.fields.get(name), list):
                known.extend(value)
            else:
                self.fields[name] = list(value) if isinstance(value, list) else value

    def _hear(self, delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            if name == "tool_calls":
                for part in value or ():
                    _merge(self.calls.of(part), part)
            else:
                _merge_field(self.message, name, value)

    def plain(self, index: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": "", "refusal": None, **_plain(self.message)}
        if self.calls.found:
            message["tool_calls"] = self.calls.plain()
        spoken = ("tool_calls", "function_call", "refusal", "audio")
        if not message["content"] and any(message.get(name) for name in spoken):
            message["content"] = None
        logprobs = None
        if self.logprobs is not None:
            logprobs = {"content": None, "refusal": None, **_plain(self.logprobs)}
        return {"index": index, "message": message, "logprobs": logprobs, **self.fields}


class _Calls:
    """The tool calls of one choice, told apart by index, or by id and name where there is none."""

    __slots__ = ("_by_index", "found")

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}

    def of(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """The call that this part belongs to, begun if it is the first of it."""
        index, call_id = part.get("index"), part.get("id")
        named = bool((part.get("function") or part.get("custom") or {}).get("name"))
        known: dict[str, Any] | None
        if index is not None:
            known = self._by_index.get(index)
            # Some servers number each of their calls 0: another id with a name is another call.
            if known and named and call_id and known.get("id", call_id) != call_id:
                known = None
        else:
            same = (call for call in self.found if call_id and call.get("id") == call_id)
            known = next(same, None)
            if known is None and not named:
                known = self.found[-1] if self.found else None
        if known is None:
            known = {}
            self.found.append(known)
        if index is not None:
            self._by_index[index] = known
        return known

    def plain(self) -> list[dict[str, Any]]:
        calls = []
        for call in sorted(self.found, key=lambda call: call.get("index", len(self.found))):
            shown = _plain(call)
            shown.pop("index", None)
            calls.append({"id": None, "type": "function", **shown})
        return calls


def _merge(known: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        _merge_field(known, name, value)


def _merge_field(into: dict[str, Any], name: str, value: Any) -> None:
    known = into.get(name)
    if isinstance(value, str) and name not in ATOMIC:
        _grow(into, name, known, value)
    elif isinstance(value, list):
        into[name] = begun = _parts(known)
        begun.extend(value)
    elif isinstance(value, dict):
        if type(known) is not dict:
            known = into[name] = {}
        _merge(known, value)
    elif value is not None and (value != "" or known is None):
        into[name] = value


def _grow(into: dict[str, Any], name: str, known: Any, piece: str) -> None:
    if type(known) is _Text:
        known.append(piece)
    elif type(known) is list:
        # Content that began as a list of parts goes on as one.
        known.extend(_parts(_Text((piece,))))
    else:
        into[name] = _Text((piece,))


def _parts(known: Any) -> list[Any]:
    if type(known) is list:
        return known
    text = "".join(known) if type(known) is _Text else ""
    return [{"type": "text", "text": text}] if text else []


def _plain(value: Any) -> Any:
    if type(value) is _Text:
        return "".join(value)
    if type(value) is dict:
        return {name: _plain(inner) for name, inner in value.items()}
    return value


def _speaks(delta: Mapping[str, Any]) -> bool:
    return any(value and name != "role" for name, value in delta.items())


def _letters(delta: Mapping[str, Any]) -> int:
    # Some servers send one thought under both names of reasoning.
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    said = [delta.get("content"), delta.get("refusal"), thought]
    functions = [
        call.get("function") or call.get("custom") for call in delta.get("tool_calls") or ()
    ]
    for function in (*functions, delta.get("function_call")):
        if function:
            said += (function.get("arguments"), function.get("input"))
    return sum(len(text) for text in said if isinstance(text, str))
