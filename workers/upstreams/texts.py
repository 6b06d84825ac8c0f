"""Pieces of text in a row, told by what surrounds them.

Most chunks of a stream differ from the one before in nothing but their text. Whoever has read one
knows the others by their bytes, for a fifth of what it takes to read each.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import orjson

from workers.upstreams.protocol import Delta

TEXT: Final = frozenset({"content"})
"""All there is in most deltas."""
_TRIES: Final = 8
"""Chunks of a stream that are looked at; where each is unlike the last it is not worth the time."""
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

    def others(self, payloads: Iterable[bytes]) -> Iterator[bytes]:
        """The payloads that have to be read; those in between are gathered."""
        for payload in payloads:
            frame, text = self._frame, None  # of the chunk that was read last
            if frame and payload.startswith(frame.before) and payload.endswith(frame.after):
                literal = payload[frame.begin : frame.end]
                if literal[:1] == b'"' == literal[-1:]:
                    try:
                        text = orjson.loads(literal)
                    except ValueError:
                        text = None  # it is more than one string
            if frame is None or text is None:
                yield payload
                continue
            if b"\\u" in literal:  # longer than it need be
                literal = orjson.dumps(text)
            self._said.append(text)
            self._lines.append(b"%b%b%b" % (frame.line_before, literal, frame.line_after))

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
    try:
        probed = orjson.loads(before + orjson.dumps(_PROBE) + after)
        found: bool = probed["choices"][0]["delta"]["content"] == _PROBE
    except (ValueError, KeyError, IndexError):
        return None
    return (before, after) if found else None
