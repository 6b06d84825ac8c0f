"""The models on offer."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.front import Front
from api.wire.objects import model_object
from shared import breakers, leases
from shared.catalog import Model

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(front: FrontDep, caller: AuthorizedCaller) -> Response:
    """The models the key may ask for; `available` when a live worker can serve it."""
    models = list(filter(caller.may_use, front.catalog.models.values()))
    return json_response({"object": "list", "data": await _shown(front, models)})


@router.get("/{name:path}")
async def retrieve_model(name: str, front: FrontDep, caller: AuthorizedCaller) -> Response:
    """One model, by its name, an alias, or the pattern that stands for it."""
    model = front.catalog.models.get(name) or front.catalog.find(name)
    caller.check_model(model)
    [shown] = await _shown(front, [model])
    return json_response(shown)


async def _shown(front: Front, models: Sequence[Model]) -> list[dict[str, Any]]:
    served = await front.tx.read(leases.served)
    states = await breakers.states(front.redis, [model.name for model in models])
    return [
        model_object(
            model,
            available=model.entry in served,
            breaker=states.get(model.name, breakers.CLOSED),
        )
        for model in models
    ]
