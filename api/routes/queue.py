"""`GET /v1/queue`: how busy the lanes are, and what is left of the caller's limits."""

from fastapi import APIRouter
from fastapi.responses import Response

from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.meters import bounds_of
from api.wire.queue import queue_object
from shared import lanes

router = APIRouter(tags=["queue"])


@router.get("/v1/queue")
async def show(front: FrontDep, caller: AuthorizedCaller) -> Response:
    """Per lane: jobs that wait and run, jobs ended in a minute, and how long they waited.

    `limits` lists what holds for this key and account, and for the models that have limits.
    """
    usable = filter(caller.may_use, front.catalog.models.values())
    limited = [each for model in usable for each in bounds_of(model)]
    bounds = [*caller.bounds, *limited]
    readings = await front.throttle.left(caller.account_id, bounds, front.catalog)
    paces = await front.tx.read(lanes.paces)
    return json_response(queue_object(front.backlog.depths, paces, readings))
