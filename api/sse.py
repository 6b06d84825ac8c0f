"""Our own SSE encoder, for OpenAI's wire and for native events, and the response that sends it.

The SDKs are strict in their own ways (`docs/adr/0005`): no frame without data, `retry:` only on a
frame that has data, a heartbeat of one line without a blank one after it, and a failure is an
`event: error` before `[DONE]`, for a stream that merely ends passes for a success.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.exchange import leaving
from api.settings import ApiSettings
from shared import background, clock, ids
from shared.errors import Fault
from shared.tables import Job

PING: Final = b": ping\n"
DONE: Final = b"data: [DONE]\n\n"
RETRY: Final = b"retry: 2000\n"
"""Milliseconds after which a browser's EventSource reconnects."""
HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


class StreamFailed(Exception):
    """The stream cannot go on: the job failed, was stopped, or began anew."""

    def __init__(self, fault: Fault, job: Job, seq: int | None = None) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.job = job
        self.seq = seq
        """The failure's number; without one the reader's cursor stays where it is."""

    @property
    def frames(self) -> bytes:
        """The failure as SDKs raise it, and the end."""
        error = {**self.fault.body(), "job_id": ids.JOB + self.job.id}
        return event_frame("error", {"error": error}, self.seq) + DONE


class ChunkFrames:
    """Frames of `chat.completion.chunk`s of one job."""

    def __init__(self, job: Job) -> None:
        head = {
            "id": ids.COMPLETION + job.id,
            "object": "chat.completion.chunk",
            "created": clock.seconds(job.created_at),
            "model": job.model,
        }
        self._head = b"data: " + orjson.dumps(head)[:-1] + b","
        self._retry = RETRY

    def chunks(self, first_seq: int, deltas: list[bytes]) -> bytes:
        """A frame for each delta; they are JSON objects and go in as they are."""
        head, retry = self._head, self._retry
        self._retry = b""
        return retry + b"".join(
            b"id: %d\n%b%b\n\n" % (seq, head, delta[1:])
            for seq, delta in enumerate(deltas, first_seq)
        )

    def usage(self, seq: int, usage: Mapping[str, Any]) -> bytes:
        """The chunk without choices that carries the usage."""
        return self.chunks(seq, [orjson.dumps({"choices": [], "usage": usage})])


def event_frame(name: str, data: Mapping[str, Any], seq: int | None = None) -> bytes:
    """A named event."""
    where = b"" if seq is None else b"id: %d\n" % seq
    return b"%bevent: %b\ndata: %b\n\n" % (where, name.encode(), orjson.dumps(data))


async def opened(frames: AsyncGenerator[bytes], within: float) -> AsyncGenerator[bytes]:
    """The same frames, once the first of them is there or so many seconds have passed.

    So a job that fails at once still gets an answer with a status of its own: raises
    `StreamFailed`, and whatever the frames raise.
    """
    deadline = asyncio.get_running_loop().time() + within
    while True:
        first = asyncio.ensure_future(anext(frames, None))
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.wait({first}, timeout=max(0.0, left))
        if not first.done() or first.result() != b"":
            return _resumed(first, frames)


async def _resumed(
    first: "asyncio.Future[bytes | None]", frames: AsyncGenerator[bytes]
) -> AsyncGenerator[bytes]:
    try:
        opening = await first
        if opening is not None:
            yield opening
        async for more in frames:
            yield more
    finally:
        await background.stop(first)
        await frames.aclose()


class EventStream(Response):
    """Sends frames as they come, a heartbeat when none do, and stops when the client has left."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        *,
        settings: ApiSettings,
        headers: Mapping[str, str],
        ping: bytes = PING,
    ) -> None:
        self._frames = frames
        self._heartbeat = settings.heartbeat.total_seconds()
        self._unread_timeout = settings.unread_timeout.total_seconds()
        self._unread_since: float | None = None
        """Since when a piece has been waiting to be taken, by the loop's clock."""
        self._ping = ping
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **headers})
        self.raw_headers = [entry for entry in self.raw_headers if entry[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream to its end."""
        sending = asyncio.ensure_future(self._send(send))
        patience = asyncio.ensure_future(self._patience())
        try:
            await asyncio.wait(
                {sending, leaving(scope), patience}, return_when=asyncio.FIRST_COMPLETED
            )
            if sending.done():
                sending.result()
        finally:
            await background.stop(sending, patience)

    async def _patience(self) -> None:
        """Return when the client has taken no bytes for too long: one timer for all it is sent."""
        loop, waited = asyncio.get_running_loop(), 0.0
        while waited < self._unread_timeout:
            await asyncio.sleep(self._unread_timeout - waited)
            waited = 0.0 if self._unread_since is None else loop.time() - self._unread_since

    async def _send(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sent_at = loop.time()
        try:
            async for frames in self._frames:
                if not frames:
                    if loop.time() - sent_at < self._heartbeat:
                        continue
                    frames = self._ping
                await self._body(send, frames)
                sent_at = loop.time()
        except StreamFailed as failed:
            await self._body(send, failed.frames)
        finally:
            await self._frames.aclose()
        await self._body(send, b"", more=False)

    async def _body(self, send: Send, frames: bytes, *, more: bool = True) -> None:
        self._unread_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": frames, "more_body": more})
        self._unread_since = None
