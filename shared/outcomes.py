"""How an attempt ended: a value that `leases.settle` writes down."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from shared.errors import Fault


@dataclass(frozen=True, slots=True)
class Said:
    """What the model had said by the end of the attempt.

    `log` holds the deltas as JSON lines, the first of them numbered `first_seq`.
    """

    response: bytes = b""
    """The `chat.completion` as JSON, whole or partial."""
    log: bytes = b""
    first_seq: int = 1
    deltas: int = 0
    characters: int = 0
    warnings: list[dict[str, Any]] | None = None
    """What of the request was left out for the model; None: nothing."""
    usage: dict[str, Any] | None = None
    usage_estimated: bool = False
    """The upstream did not count to the end; we did."""
    free: bool = False
    """A filter let nothing be said: what was read costs nothing."""
    first_delta_at: int | None = None
    provider: str | None = None
    """The upstream that was called."""
    model: str | None = None
    """The model of the catalogue that spoke: its price counts."""
    served_model: str | None = None
    """The model as that upstream calls it."""
    upstream_status: int | None = None
    """The HTTP status of its answer; None when it gave none."""

    @property
    def bill(self) -> str | None:
        """The model whose price counts; None when nothing is charged."""
        return None if self.free else self.model


@dataclass(frozen=True, slots=True)
class Completed:
    """The upstream finished and said so."""

    said: Said


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed for good; what was said until then is kept."""

    fault: Fault
    said: Said = field(default_factory=Said)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for it to stop."""

    said: Said = field(default_factory=Said)


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed, and another attempt may help after a pause, or at another model."""

    fault: Fault
    after: timedelta
    said: Said = field(default_factory=Said)
    target: int | None = None
    """Whose turn is next in the job's chain; None: the same model's."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The worker is going away, or cannot work just now; the attempt does not count."""

    said: Said = field(default_factory=Said)
    after: timedelta = timedelta(0)
    """How long to wait before the next."""


Outcome = Completed | Failed | Cancelled | Retry | HandedBack
