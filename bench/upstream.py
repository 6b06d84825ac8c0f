"""An upstream that answers at once and the same to everybody, so cheaply that it hardly counts.

python -m bench.upstream --port 9001
"""

import argparse
import asyncio

import orjson
import uvloop
from aiohttp import web

WORDS = ("It", " is", " fine", ".")


def _events() -> bytes:
    said = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS)]
    chunks = [_chunk([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in said]
    chunks.append(_chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    usage = {"prompt_tokens": 12, "completion_tokens": len(WORDS), "total_tokens": 16}
    chunks.append(_chunk([], usage=usage))
    lines = [*(orjson.dumps(chunk) for chunk in chunks), b"[DONE]"]
    return b"".join(b"data: %b\n\n" % line for line in lines)


def _chunk(choices: list[object], **more: object) -> dict[str, object]:
    named = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000}
    return {**named, "model": "quick", "choices": choices, **more}


EVENTS = _events()


async def complete(request: web.Request) -> web.Response:
    """The whole stream in one piece."""
    await request.read()
    return web.Response(body=EVENTS, content_type="text/event-stream")


async def serve(port: int) -> None:
    """Listen on loopback until the process ends."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
    await asyncio.Event().wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
