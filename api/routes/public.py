"""`POST /v1/public/chat/completions`: the AINative dialect, a completion like any other."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import AdmissionDep, AuthorizedCaller, FrontDep
from api.routes.chat import ask
from api.wire.openapi import ANSWERS, submission_of
from api.wire.public import PublicCompletionRequest

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/public/chat/completions",
    responses=ANSWERS,
    openapi_extra=submission_of(PublicCompletionRequest),
)
async def create(
    request: Request, front: FrontDep, caller: AuthorizedCaller, admission: AdmissionDep
) -> Response:
    """Ask a model, with a `system` prompt beside the messages if you like."""
    return await ask(request, front, caller, admission, PublicCompletionRequest)
