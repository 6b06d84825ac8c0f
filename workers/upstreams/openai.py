"""Servers that speak OpenAI's chat completions: OpenAI, vLLM, llama.cpp, Ollama and many more."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import aiohttp
import orjson

from shared.errors import UpstreamDisconnected, UpstreamError, UpstreamTimeout
from workers.upstreams import failures
from workers.upstreams.lines import LIMIT, SSELines
from workers.upstreams.protocol import Delta, Timeouts

OURS: Final = ("id", "object", "created", "model", "obfuscation")
"""Fields of a chunk that we say ourselves, or that only blur its length."""
STEADY: Final = frozenset({"service_tier", "system_fingerprint"})
"""Fields that are no news in a chunk without choices."""
ERROR_BODY: Final = 64 * 1024
FAREWELL: Final = 0.05
"""Seconds for the body to end after `[DONE]`: a connection read to its end is used again."""


class OpenAIUpstream:
    """One such server; `Upstream` for the worker."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        base_url: str,
        api_key: str | None,
        timeouts: Timeouts,
    ) -> None:
        self._session = session
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._api_key = api_key
        self._timeouts = timeouts
        connect = timeouts.connect.total_seconds()
        self._client_timeout = aiohttp.ClientTimeout(
            total=None, connect=connect, sock_connect=connect
        )
        # Compressed events would wait in the compressor's buffer.
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    async def stream(
        self, request: dict[str, Any], *, model: str
    ) -> AsyncGenerator[list[Delta], None]:
        """What the model says, as lists of deltas that arrived together, to the end.

        Closing the generator closes the connection. Raises `UpstreamError`.
        """
        response, piece = await self._open(_body(request, model))
        silence = _Silence(response, self._timeouts.silence)
        chunks = _Chunks(request.get("n") or 1, self._api_key)
        try:
            if response.status != 200:
                raise await self._refusal(response, piece)
            whole = response.content_type == "application/json"
            reader = _Whole(chunks) if whole else _Events(chunks)
            while True:
                deltas = reader.feed(piece)
                if deltas:
                    yield deltas
                if chunks.failure is not None:
                    raise chunks.failure
                if chunks.done or not piece:
                    break
                piece = await self._read(response, silence, chunks)
            chunks.check_ending()
            await _part(response)
        finally:
            silence.stop()
            response.close()

    async def _open(self, body: bytes) -> tuple[aiohttp.ClientResponse, bytes]:
        """The response and the first bytes of its body."""
        limit = self._timeouts.first_byte
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(limit.total_seconds()):
                response = await self._session.post(
                    self._url,
                    data=body,
                    headers=self._headers,
                    timeout=self._client_timeout,
                    allow_redirects=False,
                )
                return response, await response.content.readany()
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _timeout("no connection", self._timeouts.connect) from error
            if isinstance(error, TimeoutError):
                raise _timeout("no first byte", limit) from error
            if isinstance(error, (aiohttp.ClientError, OSError)):
                raise failures.broken(error) from error
            raise

    async def _read(
        self, response: aiohttp.ClientResponse, silence: "_Silence", chunks: "_Chunks"
    ) -> bytes:
        """The next bytes; nothing at the end of the body."""
        try:
            silence.begin()
            piece = await response.content.readany()
            silence.end()
        except (aiohttp.ClientError, OSError) as error:
            if chunks.complete:
                # All is said; that the goodbye is missing hurts nobody.
                return b""
            if silence.too_long:
                raise _timeout("silence", self._timeouts.silence) from error
            raise failures.broken(error) from error
        return piece

    async def _refusal(self, response: aiohttp.ClientResponse, piece: bytes) -> UpstreamError:
        body = bytearray(piece)
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(self._timeouts.silence.total_seconds()):
                while piece and len(body) < ERROR_BODY:
                    piece = await response.content.readany()
                    body += piece
        return failures.refusal(
            response.status, bytes(body), response.headers, secret=self._api_key
        )


class _Silence:
    """Ends a read that waits too long; one timer a stream, where one a read costs 6 µs each."""

    def __init__(self, response: aiohttp.ClientResponse, limit: timedelta) -> None:
        self.too_long = False
        self._response = response
        self._limit = limit.total_seconds()
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer = self._loop.call_later(self._limit, self._look)

    def begin(self) -> None:
        """A read begins to wait."""
        self._since = self._loop.time()

    def end(self) -> None:
        """It has got something."""
        self._since = None

    def stop(self) -> None:
        """No more reads."""
        self._timer.cancel()

    def _look(self) -> None:
        waited = 0.0 if self._since is None else self._loop.time() - self._since
        if waited >= self._limit:
            self.too_long = True
            self._response.close()
        else:
            self._timer = self._loop.call_later(self._limit - waited, self._look)


class _Chunks:
    """Turns chunks into deltas, and remembers what they say about the end."""

    def __init__(self, n: int, secret: str | None) -> None:
        self.done = False
        self.failure: UpstreamError | None = None
        self._n = n
        self._secret = secret
        self._seen: set[int] = set()
        self._finished: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether each choice that was asked for has its finish reason."""
        return len(self._finished) >= self._n and self._finished == self._seen

    def check_ending(self) -> None:
        """Raise `UpstreamDisconnected` if the model did not say why it ended.

        After `[DONE]` fewer choices than were asked for are accepted: not all servers know `n`.
        """
        enough = self.complete or (self.done and self._finished == self._seen)
        if not enough or not self._finished:
            raise UpstreamDisconnected("The upstream's stream ended without a finish reason.")

    def take(self, chunk: dict[str, Any]) -> Delta | None:
        """A chunk as a delta; None when nothing is in it. Raises `UpstreamError` if it is one."""
        error = chunk.get("error")
        if error is None and "choices" not in chunk and "message" in chunk:
            error = chunk
        if error:
            raise failures.in_band(error, secret=self._secret)
        usage = chunk.pop("usage", None)
        for name in OURS:
            chunk.pop(name, None)
        choices = chunk.get("choices") or []
        for choice in choices:
            self._note(choice)
        extra = {name: value for name, value in chunk.items() if name != "choices"}
        if usage and not choices:
            # Asked for by us, not by the caller, whatever else its server puts into it.
            return Delta([], b"", usage, extra or None)
        if choices or any(extra[name] is not None for name in extra.keys() - STEADY):
            return Delta(choices, orjson.dumps(chunk), usage, extra or None)
        return None

    def _note(self, choice: dict[str, Any]) -> None:
        index = choice.get("index") or 0
        if not _well_formed(choice):
            raise TypeError("not a choice")
        self._seen.add(index)
        if reason := choice.get("finish_reason"):
            if reason == "error":
                raise UpstreamError("The upstream ended with finish_reason 'error'.")
            self._finished.add(index)


class _Events:
    """The usual answer: events, a chunk each, then `[DONE]`."""

    def __init__(self, chunks: _Chunks) -> None:
        self._chunks = chunks
        self._lines = SSELines()

    def feed(self, piece: bytes) -> list[Delta]:
        """The deltas this piece completes; an empty piece is the end. A failure is noted."""
        deltas: list[Delta] = []
        try:
            for payload in self._lines.feed(piece) if piece else self._lines.end():
                if payload.startswith(b"[DONE]"):
                    self._chunks.done = True
                    break
                if (delta := self._chunks.take(orjson.loads(payload))) is not None:
                    deltas.append(delta)
        except UpstreamError as error:
            self._chunks.failure = error
        except (AttributeError, TypeError, ValueError):
            # What was cut off by the end of the stream is no chunk either: `check_ending` tells.
            if piece:
                self._chunks.failure = UpstreamError("The upstream sent what is not a chunk.")
        return deltas


class _Whole:
    """The answer of a server that ignores `stream`: one JSON body."""

    def __init__(self, chunks: _Chunks) -> None:
        self._chunks = chunks
        self._body = bytearray()

    def feed(self, piece: bytes) -> list[Delta]:
        """Nothing until the end of the body, then all of it. A failure is noted."""
        self._body += piece
        try:
            if len(self._body) > LIMIT:
                raise UpstreamError(f"The upstream sent a body of more than {LIMIT} bytes.")
            return [] if piece else self._deltas(orjson.loads(self._body))
        except UpstreamError as error:
            self._chunks.failure = error
        except (AttributeError, KeyError, TypeError, ValueError):
            self._chunks.failure = UpstreamError("The upstream sent what is not a completion.")
        return []

    def _deltas(self, completion: dict[str, Any]) -> list[Delta]:
        if "choices" not in completion:
            self._chunks.take(completion)
            raise KeyError("choices")
        said, ended = [], []
        for place, choice in enumerate(completion["choices"]):
            index = choice.get("index", place)
            delta = _as_delta(choice.pop("message"))
            ended.append({"index": index, "delta": {}, "finish_reason": choice["finish_reason"]})
            said.append({**choice, "index": index, "delta": delta, "finish_reason": None})
        last = {"choices": ended, "usage": completion.pop("usage", None)}
        taken = [self._chunks.take({**completion, "choices": said}), self._chunks.take(last)]
        return [delta for delta in taken if delta is not None]


def _body(request: dict[str, Any], model: str) -> bytes:
    options = {**(request.get("stream_options") or {}), "include_usage": True}
    return orjson.dumps({**request, "model": model, "stream": True, "stream_options": options})


def _timeout(what: str, limit: timedelta) -> UpstreamTimeout:
    return UpstreamTimeout(f"The upstream timed out: {what} for {limit.total_seconds():g} s.")


def _well_formed(choice: dict[str, Any]) -> bool:
    """Whether those who read the delta will find the types they count on; raises if far from it."""
    delta = choice.get("delta")
    objects = [delta, choice.get("logprobs")]
    places = [choice.get("index")]
    if delta:
        objects.append(delta.get("function_call"))
        for call in delta.get("tool_calls") or ():
            objects += (call.get("function"), call.get("custom"))
            places.append(call.get("index"))
    reason = choice.get("finish_reason")
    return (
        all(value is None or type(value) is dict for value in objects)
        and all(place is None or type(place) is int for place in places)
        and (reason is None or type(reason) is str)
    )


def _as_delta(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]}


async def _part(response: aiohttp.ClientResponse) -> None:
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(FAREWELL):
            while await response.content.readany():
                pass
