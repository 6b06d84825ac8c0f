"""Webhooks on their way: claim what is due, send it, note what came back. In every worker process.

What is due is asked of the database, once a second and whenever a job of this process has ended.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import aiohttp
import structlog

from shared import background, clock, deliveries
from shared.db import Transactions
from shared.deliveries import Parcel, Sending
from shared.errors import Unavailable
from workers.posting import WITHIN, Answer, PublicResolver, open_session, post
from workers.settings import WorkerSettings

log = structlog.get_logger()

AT_ONCE: Final = 100
"""Deliveries in flight in one process, and names that are looked up."""
EACH: Final = 10
"""Of one account, lookups that nobody answers included: slow receivers leave room for others."""
EVERY: Final = 1.0
"""Seconds between two looks, unless somebody wakes us."""
PAUSE: Final = 0.05
"""Seconds between two looks, however often we are woken."""
FINISH_WITHIN: Final = 3.0
"""Seconds that what is in flight has when the process stops; what is cut off is sent again."""


class Deliveries:
    """Sends what is due, as long as the process lives."""

    def __init__(
        self,
        settings: WorkerSettings,
        tx: Transactions,
        resolver: PublicResolver | None = None,
        within: aiohttp.ClientTimeout = WITHIN,
    ) -> None:
        self._allowed = settings.allowed
        self._schedule = settings.schedule
        self._tx = tx
        self._woken = asyncio.Event()
        self._resolver = resolver or PublicResolver(settings.allowed, threads=AT_ONCE)
        self._within = within
        self._busy: Counter[str] = Counter()
        """Deliveries in flight, or whose name is being looked up still, by account."""
        self._sending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="deliveries")

    async def stop(self) -> None:
        """Look no more, and give what is in flight a moment."""
        await background.stop(self._task)

    def wake(self) -> None:
        """There may be something to send."""
        self._woken.set()

    async def _run(self) -> None:
        async with open_session(self._resolver, limit=AT_ONCE, within=self._within) as session:
            try:
                while True:
                    try:
                        with suppress(Unavailable):  # the seam has noted it in the log
                            await self._look(session)
                    except Exception:
                        log.exception("deliveries_failed")
                    await asyncio.sleep(PAUSE)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(EVERY):
                            await self._woken.wait()
                    self._woken.clear()
            finally:
                if self._sending:
                    await asyncio.wait(self._sending, timeout=FINISH_WITHIN)
                await background.stop(*self._sending)

    async def _look(self, session: aiohttp.ClientSession) -> None:
        room = AT_ONCE - len(self._sending)
        # Reading costs no commit, and mostly there is nothing.
        if room <= 0 or not await self._tx.read(deliveries.due):
            return
        claimed = await self._tx(deliveries.claim, room, each=EACH, busy=dict(self._busy))
        for parcel in claimed:
            self._busy[parcel.account_id] += 1
            task = asyncio.create_task(self._deliver(session, parcel))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        if claimed:
            self.wake()  # there may be more

    async def _deliver(self, session: aiohttp.ClientSession, parcel: Parcel) -> None:
        began = time.monotonic()
        try:
            answer = await post(session, parcel, self._allowed)
            spent = round((time.monotonic() - began) * 1000)
            retry_in = next_try(self._schedule, parcel.attempt, answer)
            sent = Sending(answer.status, answer.error, spent, retry_in)
            await self._tx(deliveries.settle, parcel, sent)
            log.info(
                "delivered" if sent.arrived else "delivery_failed",
                delivery_id=parcel.delivery_id,
                attempt=parcel.attempt,
                status=answer.status,
                error=answer.error,
            )
        except Unavailable:  # it is sent again: at least once is what we promise
            log.warning("delivery_not_noted", delivery_id=parcel.delivery_id)
        except Exception:
            log.exception("delivery_broke", delivery_id=parcel.delivery_id)
        finally:
            lookup = self._resolver.under_way(parcel.url)
            if lookup is None:
                self._free(parcel.account_id)
            else:
                lookup.add_done_callback(lambda _: self._free(parcel.account_id))

    def _free(self, account_id: str) -> None:
        self._busy[account_id] -= 1
        self._busy += Counter()  # forgets those that have none
        self.wake()


def next_try(schedule: Sequence[float], attempt: int, answer: Answer) -> int | None:
    """Milliseconds until the try after this one, a tenth more or less; None: it was the last."""
    if answer.refused or answer.status == deliveries.GONE or attempt > len(schedule):
        return None
    jittered = schedule[attempt - 1] * random.uniform(0.9, 1.1)
    return max(round(jittered * 1000), clock.span(answer.retry_after))
