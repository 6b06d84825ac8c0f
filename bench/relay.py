"""The least a gateway in FastAPI can do: check a key, read the body, pass the answer's bytes on."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import aiohttp
from fastapi import FastAPI, Header, Request
from fastapi.responses import Response, StreamingResponse

UPSTREAM = os.environ.get("BENCH_UPSTREAM", "")
KEY = os.environ.get("BENCH_KEY", "")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        app.state.session = session
        yield


app = FastAPI(lifespan=_lifespan, openapi_url=None)


@app.post("/v1/chat/completions")
async def relay(request: Request, authorization: Annotated[str, Header()] = "") -> Response:
    """Ask the upstream the same, and say what it says."""
    if authorization != f"Bearer {KEY}":
        return Response(status_code=401)
    asked = await request.json()
    session: aiohttp.ClientSession = request.app.state.session
    answer = await session.post(f"{UPSTREAM}/v1/chat/completions", json=asked)
    kind = answer.headers["content-type"]
    if not asked.get("stream"):
        return Response(await answer.read(), answer.status, media_type=kind)

    async def pieces() -> AsyncIterator[bytes]:
        async with answer:
            async for piece in answer.content.iter_any():
                yield piece

    return StreamingResponse(pieces(), answer.status, media_type=kind)
