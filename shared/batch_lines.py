"""From the bytes of a batch's input to its lines, and from a line to a job."""

from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import orjson

from shared import chat, features, prices
from shared.catalog import Catalog
from shared.errors import Fault, ServiceError
from shared.jobs import Submission
from shared.lifecycle import Lane
from shared.prices import Prices
from shared.tables import Batch, Job

BOM: Final = b"\xef\xbb\xbf"
"""What some editors put before the first line."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of lines that are read at once; one may have more."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What decides how a line runs and what it may cost."""

    catalog: Catalog
    price: Decimal
    """Which part of a model's prices it pays."""
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Planned:
    """A line, ready to become a job."""

    job: Submission
    fault: Fault | None = None
    """Why it cannot run: what it asks for is no longer on offer."""


class Lines:
    """An input's requests, one after the other. Only what is read at once is in memory."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.at = 0
        """How many have been read."""
        self._pieces = pieces
        self._whole: deque[bytes] = deque()
        self._begun = b""
        self._more = True

    async def skip(self, count: int) -> None:
        """Pass over the first ones, which were read before."""
        while self.at < count and await self._next() is not None:
            pass

    async def read(self, limit: int) -> list[bytes]:
        """The next of them; none when there are no more."""
        found: list[bytes] = []
        size = 0
        while len(found) < limit and size < MOST_BYTES:
            line = await self._next()
            if line is None:
                break
            found.append(line)
            size += len(line)
        return found

    async def _next(self) -> bytes | None:
        while True:
            while not self._whole and self._more:
                await self._fetch()
            if not self._whole:
                return None
            line = self._whole.popleft()
            if line.strip():
                self.at += 1
                return line

    async def _fetch(self) -> None:
        piece = await anext(self._pieces, None)
        *whole, self._begun = (self._begun + (piece or b"\n")).split(b"\n")
        self._whole.extend(whole)
        self._more = piece is not None


def plan(line: bytes, number: int, batch: Batch, terms: Terms) -> Planned:
    """The job that a line of a checked input becomes. This is work for a thread."""
    parsed = orjson.loads(line.removeprefix(BOM))
    raw = parsed["body"]
    webhook = {name: value for name, value in (raw.get("webhook") or {}).items() if value}
    return priced(
        chat.upstream_body(raw),
        batch,
        terms,
        custom_id=parsed["custom_id"],
        line=number,
        metadata=raw.get("metadata") or None,
        webhook=webhook or None,
    )


def plan_again(job: Job, request: bytes, batch: Batch, terms: Terms) -> Planned:
    """The job that takes the place of a line that did not complete. This is work for a thread."""
    return priced(
        orjson.loads(request),
        batch,
        terms,
        custom_id=job.custom_id,
        line=job.line,
        metadata=job.job_metadata,
        webhook=job.webhook,
    )


def priced(body: Mapping[str, Any], batch: Batch, terms: Terms, **fields: Any) -> Planned:
    """The job of a body as the upstream gets it, at today's prices."""
    fault, hold, snapshot = None, 0, None
    try:
        model = terms.catalog.find(body["model"])
        least = prices.least_prompt_tokens(body, room=model.context_window)
        chain = terms.catalog.chain(body["model"], features.used(body), tokens=least)
        hold = prices.most(body, chain, terms.price, prompt=prices.prompt_tokens(body))
        snapshot = {model.name: Prices.of(model, terms.price).snapshot for model in chain}
    except ServiceError as error:
        fault = Fault.of(error)
    job = Submission(
        account_id=batch.account_id,
        key_id=batch.key_id,
        request_id=batch.request_id,
        batch_id=batch.id,
        model=body["model"],
        body=orjson.dumps(body),
        lane=Lane.BATCH,
        background=True,
        expires_at=batch.expires_at,
        max_attempts=terms.max_attempts,
        hinted=False,
        hold_due=hold,
        prices=snapshot,
        **fields,
    )
    return Planned(job, fault)
