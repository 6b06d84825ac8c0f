"""An attempt while it is under way in this process: what was said in it, and the way to stop it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import orjson

from shared import background, clock, ids, prices
from shared.catalog import Model
from shared.chat import Transcript
from shared.leases import Claim
from shared.outcomes import Outcome, Said
from shared.prices import NANO, Prices
from workers.publisher import JobLog, Unread
from workers.targets import Target
from workers.upstreams.protocol import Delta

Why = Literal["cancelled", "handed_back", "fenced"]


@dataclass(slots=True, eq=False)
class Running:
    """A claimed job, what its model has said, and the task that listens to the upstream."""

    claim: Claim
    transcript: Transcript = field(default_factory=Transcript)
    task: "asyncio.Task[Outcome] | None" = None
    why: Why | None = None
    log: JobLog | Unread | None = None
    targets: Sequence[Target] = ()
    """The models that may answer from here on, of those whose upstreams can be called."""
    called: int = 0
    """The index of the one that is called."""
    left_out: Sequence[str] = ()
    """Fields of the request that it lacks, and did not get."""
    called_at: float | None = None
    """By `time.monotonic`; None until then."""
    upstream_status: int | None = None
    usage: dict[str, Any] | None = None
    first_delta_at: int | None = None
    available: int | None = None
    """Nano-credits that the account could spend at the end; None until then, or if not known."""
    heralded: bool = True
    """Its end may have left webhooks to send."""
    _unsaid: list[bytes] = field(default_factory=list)
    """Deltas without a word in them, which nobody was shown."""
    _warned: bool = False
    """The first delta says what was left out."""

    @property
    def model(self) -> Model | None:
        """The model that is called, once it is chosen."""
        return self.targets[self.called].model if self.targets else None

    @property
    def committed(self) -> bool:
        """Whether a reader may have seen text that cannot be unsaid."""
        return self.transcript.spoke and self.read_live

    @property
    def read_live(self) -> bool:
        """Whether somebody may read what is said while it is said, and builds on it."""
        return self.claim.job.stream and not self.claim.job.background

    @property
    def age(self) -> timedelta:
        """How long ago the call began."""
        since = time.monotonic() - self.called_at if self.called_at else 0.0
        return timedelta(seconds=since)

    def stop(self, why: Why) -> None:
        """End the upstream call at once; the first reason given is the one that counts.

        An attempt that has ended by itself stays as it ended.
        """
        ended = self.task is not None and self.task.done()
        if self.why is None and not ended:
            self.why = why
            if self.task is not None:
                background.cancel(self.task)

    def hear(self, batch: Sequence[Delta]) -> None:
        """Write what was said into the transcript and the log, from its first word on."""
        for delta in batch:
            if delta.usage is not None:
                self.usage = delta.usage
            self.transcript.add(delta.choices, delta.extra)
            self._unsaid += self._with_warnings(delta.lines) if self.left_out else delta.lines
        if self.transcript.spoke:
            self.first_delta_at = self.first_delta_at or clock.now()
            self.publish()

    def publish(self) -> None:
        """Put into the log what was said, whether or not there is a word in it."""
        lines, self._unsaid = self._unsaid, []
        if lines and self.log is not None:
            self.log.append(lines, self.transcript.characters)

    def said(self, *, billed: bool = False) -> Said:
        """What the model said in this attempt, as it is kept; `billed`: with what it costs."""
        if self._unsaid:  # nobody was shown it, and nobody shall be
            self._unsaid, self.transcript = [], Transcript()
        if self.log is None:
            return Said()
        return self.kept(self.log.lines, self.log.first_seq, billed=billed)

    def kept(self, lines: list[bytes], first_seq: int, *, billed: bool = False) -> Said:
        """The same, with the log's lines and the number of their first."""
        job, model, warnings = self.claim.job, self.model, self._warnings()
        response = self.transcript.completion(
            id=ids.COMPLETION + job.id,
            created=clock.seconds(job.created_at) or 0,
            model=job.model,
            usage=self.usage,
            extra={"warnings": warnings} if warnings else None,
        )
        counted = self._counted(response)
        free = billed and _filtered(response, counted)
        usage = response["usage"] = self._priced(counted, free=free) if billed else counted
        return Said(
            response=orjson.dumps(response),
            log=b"\n".join(lines),
            first_seq=first_seq,
            deltas=len(lines),
            characters=self.transcript.characters,
            warnings=warnings,
            usage=usage,
            usage_estimated=counted is not self.usage,
            free=free,
            first_delta_at=self.first_delta_at,
            model=model.name if model else None,
            provider=model.upstream if model else None,
            served_model=model.upstream_model if model else None,
            upstream_status=self.upstream_status,
        )

    def _with_warnings(self, lines: list[bytes]) -> list[bytes]:
        """The lines; the attempt's first is where a stream's reader learns what was left out."""
        if self._warned or not lines:
            return lines
        self._warned = True
        first = lines[0][:-1] + b"," + orjson.dumps({"warnings": self._warnings()})[1:]
        return [first, *lines[1:]]

    def _warnings(self) -> list[dict[str, Any]] | None:
        if not self.left_out:
            return None
        name = self.model.name if self.model else ""
        return [
            {
                "code": "unsupported_parameter",
                "param": field,
                "message": f"{field!r} was left out: the model {name!r} does not take it.",
            }
            for field in self.left_out
        ]

    def _counted(self, response: dict[str, Any]) -> dict[str, Any] | None:
        """What was used, by the upstream's count; ours, of what it has not counted to the end."""
        counted = self.usage
        if self.claim.job.held is None or (counted is not None and self.why is None):
            return counted
        counted = counted or {}
        request, model = orjson.loads(self.claim.request), self.model
        prompt, said = prices.prompt_tokens(request), prices.completion_tokens(response)
        if model is not None:  # no more than was held for
            prompt = min(prompt, model.context_window)
            said = min(said, prices.output_cap(request, model))
        prompt = counted.get("prompt_tokens") or prompt
        said = max(counted.get("completion_tokens") or 0, said)
        totals = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
        return {**counted, **totals}

    def _priced(self, usage: dict[str, Any] | None, *, free: bool) -> dict[str, Any] | None:
        """With the credits that it costs, unless it is free."""
        snapshot = (self.claim.job.prices or {}).get(self.model.name if self.model else "")
        if usage is None or snapshot is None:
            return usage
        return {**usage, "cost": 0 if free else Prices.kept(snapshot).cost(usage) / NANO}


def _filtered(response: dict[str, Any], usage: dict[str, Any] | None) -> bool:
    """Whether a filter came before the first word."""
    reasons = {choice["finish_reason"] for choice in response["choices"]}
    return reasons == {"content_filter"} and not (usage or {}).get("completion_tokens")
