"""What a reader puts together from the frames of one job, whichever api sent them."""

from dataclasses import dataclass, field
from typing import Any

from tests.frames import Frame

RESTARTED, DRAINING = "stream_restarted", "draining"
"""Codes of errors after which the stream goes on: from its start, or at another api."""
ENDS = {"job.completed", "job.failed", "job.cancelled", "job.expired"}
BEGINNINGS = {"job.started", "job.retrying"}


@dataclass
class Reading:
    """The text so far, how it came to an end, and what should not have been."""

    seq: int | None = None
    """The id of the last frame that had one; None from the start."""
    pieces: list[tuple[int, str]] = field(default_factory=list)
    ended: str | None = None
    """`completed`, or the code or status of another end."""
    told: list[str] = field(default_factory=list)
    """What took back something that was said: a job that began anew."""
    wrong: list[str] = field(default_factory=list)
    over: bool = False
    """This connection has nothing more to say."""

    @property
    def text(self) -> str:
        """All that stands."""
        return "".join(text for _, text in self.pieces)

    def take(self, frame: Frame) -> None:
        """A frame of either view."""
        done = frame.data == "[DONE]"
        if self.over and not done:
            self.wrong.append(f"after the end came {frame}")
        elif done:
            self._end(None if self.over else "completed")  # it also follows an error
        elif frame.event == "error":
            self.take_error(frame.json["error"]["code"])
        elif frame.event is not None:
            self._take_event(frame.event, frame)
        else:
            self._advance(frame)
            self._add(frame)

    def _end(self, how: str | None) -> None:
        self.over = True
        self.ended = how or self.ended

    def take_error(self, code: str) -> None:
        """An error, in the stream or instead of it."""
        self._end(None if code in (RESTARTED, DRAINING) else code)
        if code == RESTARTED:
            self.told.append(code)
            self.seq, self.pieces = None, []

    def _take_event(self, name: str, frame: Frame) -> None:
        if name in ENDS:
            self._end(frame.json["job"]["status"])
        elif name == "job.delta":
            self._advance(frame)
            self._add(frame)
        elif name in BEGINNINGS:
            self._advance(frame, leaps=True)
            if name == "job.retrying":
                self.told.append(name)
                since = frame.json["discard_from_seq"]
                self.pieces = [piece for piece in self.pieces if piece[0] < since]

    def _advance(self, frame: Frame, *, leaps: bool = False) -> None:
        if frame.id is None:
            self.wrong.append(f"a frame has no id: {frame}")
            return
        leaps = leaps or not self.pieces  # there is nothing yet that it would have to follow on
        if self.seq is not None and (frame.id <= self.seq if leaps else frame.id != self.seq + 1):
            self.wrong.append(f"after {self.seq} came {frame.id}")
        self.seq = frame.id

    def _add(self, frame: Frame) -> None:
        text = said(frame.json)
        if text:
            self.pieces.append((frame.id or 0, text))


def said(chunk: Any) -> str:
    """The text in a chunk, a delta or a completion."""
    choices = chunk.get("choices") or []
    bodies = [choice.get("delta") or choice.get("message") or {} for choice in choices]
    return "".join(body.get("content") or "" for body in bodies)
