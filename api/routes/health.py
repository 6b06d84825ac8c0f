"""Health and metrics, for machines; without a key."""

import asyncio
import math
from collections.abc import Awaitable, Mapping

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from api.deps import FrontDep
from api.errors import json_response
from api.front import Front
from shared import lanes, leases
from shared.errors import NotFound, Unavailable
from shared.lifecycle import JobStatus, Lane

router = APIRouter(tags=["health"])

CHECK_WITHIN = 1.0
"""Seconds each check may take."""
COUNT_WITHIN = 3.0
"""Seconds that a scrape waits for the rows to be counted; its collector gives up after ten."""


@router.get("/health/live")
@router.head("/health/live", include_in_schema=False)
async def live() -> Response:
    """This process answers."""
    return json_response({"status": "ok"})


@router.get("/health/ready")
@router.head("/health/ready", include_in_schema=False)
async def ready(front: FrontDep) -> Response:
    """Database, Redis and at least one live worker are there; 503 names what is not."""
    names = ("database", "redis", "workers")
    checks = (_database(front), _redis(front), _workers(front))
    found = await asyncio.gather(*map(_within, checks))
    ok = all(word == "ok" for word in found)
    body = {"status": "ok" if ok else "unavailable", "checks": dict(zip(names, found, strict=True))}
    return json_response(body, status=200 if ok else 503)


async def _within(check: Awaitable[str]) -> str:
    try:
        async with asyncio.timeout(CHECK_WITHIN):
            return await check
    except TimeoutError:
        return "no answer"
    except (Unavailable, RedisError, OSError):
        return "unavailable"


async def _database(front: Front) -> str:
    await front.tx.read(leases.alive)
    return "ok"


async def _redis(front: Front) -> str:
    await front.redis.ping()
    return "ok"


async def _workers(front: Front) -> str:
    return "ok" if await front.tx.read(leases.alive) else "none alive"


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, front: FrontDep) -> Response:
    """Prometheus: this process's counters, and the queue as the database has it.

    What is counted there is NaN while it is away.
    """
    if not front.settings.metrics:
        raise NotFound("Metrics are switched off.")
    shown = front.metrics
    shown.readers.set(front.hub.readers)
    for lane in Lane:
        shown.queued.labels(lane.value).set(front.backlog.depths[lane.value])
    unfinished, workers = await _counted(front)
    for status, count in unfinished.items():
        shown.jobs.labels(status).set(count)
    shown.workers.set(workers)
    return Response(generate_latest(shown.registry), media_type=CONTENT_TYPE_LATEST)


async def _counted(front: Front) -> tuple[Mapping[str, float], float]:
    """The jobs that have not ended, by status, and the live workers."""
    try:
        async with asyncio.timeout(COUNT_WITHIN):
            unfinished = await front.tx.read(lanes.unfinished)
            return unfinished, len(await front.tx.read(leases.alive))
    except (TimeoutError, Unavailable):
        return dict.fromkeys((JobStatus.QUEUED, JobStatus.IN_PROGRESS), math.nan), math.nan
