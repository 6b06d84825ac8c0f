"""An attempt while it is under way in this process, and the way to stop it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

from shared import background
from shared.catalog import Model
from shared.chat import Transcript
from shared.leases import Claim
from shared.outcomes import Outcome
from workers.publisher import JobLog

Why = Literal["cancelled", "handed_back", "fenced"]


@dataclass(slots=True, eq=False)
class Running:
    """A claimed job, what its model has said, and the task that listens to the upstream."""

    claim: Claim
    transcript: Transcript = field(default_factory=Transcript)
    task: "asyncio.Task[Outcome] | None" = None
    why: Why | None = None
    log: JobLog | None = None
    model: Model | None = None
    usage: dict[str, Any] | None = None
    first_delta_at: int | None = None

    def stop(self, why: Why) -> None:
        """End the upstream call at once; the first reason given is the one that counts.

        An attempt that has ended by itself stays as it ended.
        """
        ended = self.task is not None and self.task.done()
        if self.why is None and not ended:
            self.why = why
            if self.task is not None:
                background.cancel(self.task)
