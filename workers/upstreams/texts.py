"""Pieces of text in a row, told by what surrounds them.

Most chunks of a stream differ from the one before in nothing but their text. Whoever has read one
knows the others by their bytes, for a fifth of what it takes to read each.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from workers.upstreams.protocol import Delta

TEXT: Final = frozenset({"content"})
"""All there is in most deltas."""
_TRIES: Final = 8
"""Chunks of a stream that are looked at; where each is unlike the last it is not worth the time."""
_RUN: Final = 64
"""Chunks that are taken at once: where one is not like the others, those before are looked at
again."""
_PROBE: Final = "another text"


class _Frame(NamedTuple):
    """The bytes around the text: in what the server sends, and in the line that stays of it."""

    before: bytes
    after: bytes
    begin: int
    end: int
    """Where the text is in between."""
    line_before: bytes
    line_after: bytes
    choice: int
    """The index of the one that speaks."""
    extra: dict[str, Any] | None
    """What else each of these chunks says."""


class Texts:
    """Gathers chunks that are like the last one that was read, but for their text."""

    def __init__(self) -> None:
        self._frame: _Frame | None = None
        self._tries = _TRIES
        self._said: list[str] = []
        self._lines: list[bytes] = []

    def others(self, payloads: Sequence[bytes]) -> Iterator[bytes]:
        """The payloads that have to be read; those in between are gathered."""
        at = 0
        while at < len(payloads):
            run = payloads[at : at + _RUN]
            taken = self._gather(run)
            at += taken
            if taken < len(run):
                yield payloads[at]
                at += 1

    def _gather(self, payloads: Sequence[bytes]) -> int:
        """Take those that are like the last that was read, up to one that is not: so many."""
        frame, inside = self._frame, []
        if frame is None:
            return 0
        before, after, begin, end, line_before, line_after, *_ = frame
        for payload in payloads:
            if not (payload.startswith(before) and payload.endswith(after)):
                break
            inside.append(payload[begin:end])
        if not all(inside):  # it says nothing, or only one quote is there
            del inside[inside.index(b"") :]
        text = _read(inside)
        while text is None and inside:  # one of them is more than a string
            inside.pop()
            text = _read(inside)
        if text is None:
            return 0
        if b"\\u" in b"".join(inside):  # longer than it need be
            inside = [orjson.dumps(_read([each]))[1:-1] for each in inside]
        self._said.append(text)
        self._lines += [line_before + each + line_after for each in inside]
        return len(inside)

    def gathered(self) -> list[Delta]:
        """What was gathered, as one delta; nothing when there is none."""
        if not self._said or self._frame is None:
            return []
        text = {"content": "".join(self._said)}
        delta = Delta([{"index": self._frame.choice, "delta": text}], self._lines)
        self._said, self._lines = [], []
        return [delta]

    def learn(self, payload: bytes, delta: Delta) -> None:
        """Look at a chunk that was read, and what it became: the next ones may be like it."""
        if self._frame is not None and delta.extra not in (None, self._frame.extra):
            self._frame = None  # what else it says holds no more
        if self._tries and delta.usage is None and len(delta.choices) == 1:
            choice = delta.choices[0]
            if is_text(choice):
                self._tries -= 1
                self._frame = _frame(payload, delta, choice) or self._frame


def is_text(choice: dict[str, Any]) -> bool:
    """Whether it is a piece of text and no more."""
    delta = choice.get("delta")
    return (
        type(delta) is dict
        and delta.keys() == TEXT
        and type(delta["content"]) is str
        and type(choice.get("index")) is int
        and choice.get("finish_reason") is None
        and choice.get("logprobs") is None
    )


def _read(inside: Sequence[bytes]) -> str | None:
    """What these strings say, each without its quotes; None if one of them is something else."""
    try:
        texts = orjson.loads(b'["%b"]' % b'","'.join(inside))
        return "".join(texts) if len(texts) == len(inside) else None
    except (ValueError, TypeError):
        return None


def _frame(payload: bytes, delta: Delta, choice: dict[str, Any]) -> _Frame | None:
    text = choice["delta"]["content"]
    sent, kept = _around(payload, text), _around(delta.lines[0], text)
    if sent is None or kept is None:
        return None
    (before, after), extra = sent, delta.extra
    return _Frame(before, after, len(before), -len(after), *kept, choice["index"], extra)


def _around(told: bytes, text: str) -> tuple[bytes, bytes] | None:
    """What surrounds the text in a chunk's JSON; None where it is not plain which place is its."""
    before, _, after = told.partition(orjson.dumps(text))
    before, after = before + b'"', b'"' + after
    try:
        probed = orjson.loads(before + _PROBE.encode() + after)
        found: bool = probed["choices"][0]["delta"]["content"] == _PROBE
    except (ValueError, KeyError, IndexError):
        return None
    return (before, after) if found else None
