"""Moves open batches on while this process leads: reads, numbers, stops, expires, ends them.

A step of each batch in turn, so that a long one does not hold up the short. Nothing but open
inputs is kept here: whoever leads next goes on where the rows say.
"""

import asyncio
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Final

import structlog
from redis.asyncio import Redis

from shared import background, batch_lines, batch_results, batch_steps, endings
from shared.batch_lines import Lines, Planned, Terms
from shared.batch_steps import Ended, Shown, Step
from shared.catalog import Catalog
from shared.db import Transactions
from shared.errors import NotFound, Unavailable
from shared.storage import Storage
from shared.tables import Batch, Job
from workers.settings import WorkerSettings

log = structlog.get_logger()

EVERY: Final = 0.5
"""Seconds between two turns when there was nothing to do."""
BATCHES: Final = 50
"""That get their step in one turn; as many inputs are open at once."""
LINES: Final = 250
"""That one step reads, or changes, at most."""
ENDED: Final = 2_000
"""Lines that one step cancels, or lets expire, at most."""
REPLACED: Final = 250
"""Lines whose requests one step takes over, and fewer when they are long."""
NUMBERED: Final = 2_000
"""Lines that one step numbers, or measures."""


class Batching:
    """Turns as long as the process lives, and works as long as it leads."""

    def __init__(
        self,
        settings: WorkerSettings,
        tx: Transactions,
        redis: Redis,
        storage: Storage,
        catalog: Callable[[], Catalog],
        leads: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._tx = tx
        self._redis = redis
        self._storage = storage
        self._catalog = catalog
        self._leads = leads
        self._inputs: dict[str, Lines] = {}
        """Inputs that are being read, by the batch's id."""
        self._last = ""
        """The batch that had its turn last."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to turn; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="batching")

    async def stop(self) -> None:
        """Turn no more."""
        await background.stop(self._task)

    async def _run(self) -> None:
        while True:
            busy, began = False, time.monotonic()
            try:
                if self._leads():
                    busy = await self.turn()
                else:
                    self._inputs.clear()
            except Unavailable as error:
                log.warning("batching_waits", error=error.message)
            except Exception:
                log.exception("batching_turn_failed")
            took = time.monotonic() - began
            # Half of the time belongs to the others.
            await asyncio.sleep(min(took, EVERY) if busy else EVERY)

    async def turn(self) -> bool:
        """One step of whatever is due for each batch; whether anything came of it."""
        due = await self._tx.read(batch_steps.due, BATCHES, self._last)
        self._last = due[-1][0].id if due else ""
        reading = {batch.id for batch, steps in due if Step.READ in steps}
        self._inputs = {name: self._inputs[name] for name in self._inputs if name in reading}
        busy = [await self._advance(batch, steps) for batch, steps in due]
        return any(busy)

    async def _advance(self, batch: Batch, steps: list[Step]) -> bool:
        """What is due for one batch; when a step fails, the others go on."""
        busy = False
        for step in steps:
            try:
                busy |= bool(await self._step(step, batch))
            except Unavailable as error:
                log.warning("batch_waits", batch_id=batch.id, step=step, error=error.message)
            except Exception:
                log.exception("batch_step_failed", batch_id=batch.id, step=step)
        return busy

    async def _step(self, step: Step, batch: Batch) -> object:
        match step:
            case Step.READ:
                return await self._read(batch)
            case Step.REPLACE:
                return await self._replace(batch)
            case Step.NUMBER:
                return await self._tx(batch_steps.number, batch.id, NUMBERED)
            case Step.STOP:
                return await self._end_lines(batch_steps.stop, batch)
            case Step.EXPIRE:
                return await self._end_lines(batch_steps.expire, batch)
            case Step.END:
                return await self._end(batch)

    @property
    def _terms(self) -> Terms:
        price = Decimal(str(self._settings.batch_price))
        return Terms(self._catalog(), price, self._settings.max_attempts)

    async def _read(self, batch: Batch) -> bool:
        """Make jobs of the next lines of the input."""
        start = batch.read_lines
        try:
            lines = await self._input(batch)
            some = await lines.read(min(LINES, batch.total - start))
        except NotFound:
            some = []
        except BaseException:
            self._inputs.pop(batch.id, None)
            raise
        if not some:
            message = f"The input file was deleted when {start} lines of it were read."
            await self._tx(batch_steps.cut_short, batch.id, start, message)
            return True
        planned = await asyncio.to_thread(_plan, some, start + 1, batch, self._terms)
        await self._tx(batch_steps.add, batch.id, start, planned)
        return True

    async def _input(self, batch: Batch) -> Lines:
        """The input, where its next line begins; another leader may have read on."""
        lines = self._inputs.get(batch.id)
        if lines is None or lines.at != batch.read_lines:
            lines = Lines(await self._storage.open(str(batch.input_file_id)))
            await lines.skip(batch.read_lines)
            self._inputs[batch.id] = lines
        return lines

    async def _replace(self, batch: Batch) -> int:
        """Make new jobs of the next lines that are tried anew."""
        failed = await self._tx.read(batch_results.to_replace, batch, REPLACED)
        anew = await asyncio.to_thread(_plan_again, failed, batch, self._terms)
        return await self._tx(batch_steps.replace, batch.id, batch.retry_at, anew)

    async def _end_lines(self, step: Callable[..., Ended], batch: Batch) -> bool:
        """End lines that wait, then tell readers and workers of the others."""
        ended = await self._tx.alone(step, batch.id, ENDED)
        told = (endings.announce(self._tx, self._redis, job) for job in ended.told)
        await asyncio.gather(*told)
        return ended.many > 0

    async def _end(self, batch: Batch) -> bool:
        """Measure what the files will show, a page at a time, then end the batch."""
        output, errors = await self._measured(batch, True), await self._measured(batch, False)
        ended = await self._tx(batch_steps.end, batch.id, batch.results, output, errors)
        if ended:
            log.info("batch_ended", batch_id=batch.id)
        return ended

    async def _measured(self, batch: Batch, completed: bool) -> Shown:
        lines = size = 0
        after: str | None = None
        while True:
            page, after = await self._tx.read(
                batch_steps.measure, batch.id, completed=completed, after=after, limit=NUMBERED
            )
            lines, size = lines + page.lines, size + page.bytes
            if after is None:
                return Shown(lines, size)


def _plan(lines: list[bytes], first: int, batch: Batch, terms: Terms) -> list[Planned]:
    return [batch_lines.plan(line, first + at, batch, terms) for at, line in enumerate(lines)]


def _plan_again(failed: list[tuple[Job, bytes]], batch: Batch, terms: Terms) -> dict[str, Planned]:
    return {job.id: batch_lines.plan_again(job, request, batch, terms) for job, request in failed}
