"""The API's wiring: routes, error handlers, what surrounds a request, and the lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api import errors, front
from api.direct import Direct
from api.middleware import Metrics, Requests
from api.routes import (
    admin_accounts,
    admin_audit,
    admin_credits,
    admin_keys,
    batch_results,
    batches,
    chat,
    completions,
    credits,
    events,
    files,
    health,
    jobs,
    models,
    public,
    queue,
    webhooks,
)
from api.settings import ApiSettings
from api.wire.headers import is_ndjson
from api.wire.openapi import REFUSALS

DESCRIPTION = """
A durable queue for LLM completions. Every accepted request is a **job**: hold on for its answer,
stream it, or come back for it later, from any connection. OpenAI's SDKs work unchanged.
"""
ADMIN = (admin_accounts, admin_keys, admin_credits, admin_audit)
OURS = (queue, models, credits, webhooks, events)
BULK = (files, batches, batch_results)
SUBMISSIONS = (chat.create, public.create, jobs.submit)
RESOURCES = (chat, public, completions, jobs, *BULK, *OURS, *ADMIN, health)


def create_app(settings: ApiSettings) -> FastAPI:
    """The API, which opens database and Redis when it starts.

    What is to be served is `app.state.surrounded`: FastAPI's own middleware takes a request past
    four more of its kind.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with front.lifespan(settings, metrics) as opened:
            app.state.front = opened
            yield

    app = FastAPI(
        title="Sluice",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        responses=REFUSALS,
        redirect_slashes=False,  # a redirect would name the host as we see it
        # We have metrics of our own, and it looks for its providers at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for resource in RESOURCES:
        app.include_router(resource.router)
    errors.install(app)

    def limit_of(path: str, content_type: str) -> int:
        """Bytes a body may have: inputs of batches are streamed, others are read as a whole."""
        if path == batches.PATH and is_ndjson(content_type):
            return settings.file_limit
        return settings.file_limit + files.FORM if path == files.PATH else settings.body_limit

    asked_most = [
        route
        for resource in (chat, public, jobs)
        for route in resource.router.routes
        if isinstance(route, APIRoute) and route.endpoint in SUBMISSIONS
    ]
    direct = Direct(app, routes=asked_most)
    app.state.surrounded = Requests(direct, metrics=metrics, limit_of=limit_of)
    return app
