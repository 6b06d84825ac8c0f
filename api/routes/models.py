"""The models on offer."""

from fastapi import APIRouter
from fastapi.responses import Response

from api.deps import AuthorizedCaller, FrontDep
from api.errors import json_response
from api.wire.objects import model_object
from shared import leases

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(front: FrontDep, _: AuthorizedCaller) -> Response:
    """Every model of the catalogue; `available` when a live worker can serve it."""
    served = await front.tx.read(leases.served)
    models = front.catalog.models.values()
    shown = [model_object(model, available=model.name in served) for model in models]
    return json_response({"object": "list", "data": shown})


@router.get("/{name:path}")
async def retrieve_model(name: str, front: FrontDep, _: AuthorizedCaller) -> Response:
    """One model, by its name or an alias."""
    model = front.catalog.find(name)
    served = await front.tx.read(leases.served)
    return json_response(model_object(model, available=model.name in served))
