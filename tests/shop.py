"""A worker without Celery: its bench in the test's own event loop, and jobs to put on it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import SecretStr

from shared import jobs, keys
from shared.jobs import Submission
from shared.tables import Attempt, Job
from tests.fakes.upstream import ScriptedUpstream, Step
from tests.stack import CATALOG, MODEL
from workers import attempts, bench
from workers.bench import Bench
from workers.settings import WorkerSettings

T = TypeVar("T")


@dataclass
class Shop:
    """A worker's bench, and jobs to put on it."""

    bench: Bench
    upstream: ScriptedUpstream
    account_id: str

    async def submit(self, *steps: Step, **fields: Any) -> Job:
        """A job whose upstream does this on every call."""
        if steps:
            self.upstream.script("test", *steps)
        body = {"messages": [{"role": "user", "content": "Hi"}], **fields.pop("body", {})}
        new = Submission(
            account_id=self.account_id,
            request_id="req",
            model="test",
            body=orjson.dumps(body),
            **fields,
        )
        return await self.bench.tx(jobs.submit, new)

    async def row(self, job: Job) -> Job:
        """The job, now."""
        return await self.bench.tx.read(jobs.find, self.account_id, job.id)

    async def response(self, job: Job) -> Any:
        """The stored completion."""
        kept = await self.bench.tx.read(jobs.content, job.id)
        return orjson.loads(kept.response or b"null")

    async def tries(self, job: Job) -> list[Attempt]:
        """Its attempts."""
        return await self.bench.tx.read(jobs.attempts, job.id)

    async def until(self, look: Callable[[], Awaitable[T | None]], within: float = 15.0) -> T:
        """What `look` finds."""
        async with asyncio.timeout(within):
            while not (found := await look()):
                await asyncio.sleep(0.02)
            return found

    async def run_to_the_end(self, job: Job) -> Job:
        """Try the job whenever it is due, as hints would have it, until it has ended."""

        async def ended() -> Job | None:
            await attempts.run(self.bench, job.id)
            row = await self.row(job)
            return row if row.completed_at else None

        return await self.until(ended)

    async def begin(self, job: Job) -> "asyncio.Task[None]":
        """Begin an attempt, and wait until the model has said something."""
        task = asyncio.create_task(attempts.run(self.bench, job.id))

        async def spoken() -> bool:
            at_work = self.bench.hands.running.get(job.id)
            return at_work is not None and at_work.transcript.spoke

        await self.until(spoken)
        return task


@asynccontextmanager
async def open_shop(
    directory: Path,
    database_url: str,
    redis_url: str,
    upstream: ScriptedUpstream,
    models: str = MODEL.format(name="test"),
    **changed: Any,
) -> AsyncIterator[Shop]:
    """A shop with short leases, unless `changed` says otherwise, and time limits no test waits for.

    `models` is TOML: what is on offer beside the upstream.
    """
    catalogue = directory / "models.toml"
    catalogue.write_text(CATALOG.format(base_url=upstream.base_url) + models)
    settings: dict[str, Any] = {
        "database_url": SecretStr(database_url),
        "redis_url": SecretStr(redis_url),
        "catalog": catalogue,
        "lease_ttl": timedelta(seconds=20),
        "lease_beat": timedelta(seconds=0.2),
        "lease_margin": timedelta(seconds=1),
        "drain": timedelta(seconds=0.3),
        "silence_timeout": timedelta(seconds=20),
        "attempt_timeout": timedelta(seconds=20),
    }
    async with bench.lifespan(WorkerSettings(**(settings | changed))) as opened:
        key, _ = await opened.tx(keys.create, account="a")
        yield Shop(opened, upstream, key.account_id)
