"""A scripted OpenAI-compatible server on loopback: tests say what a model does, call by call.

    with ScriptedUpstream() as upstream:
        upstream.script("m", Say("Hello there", every=0.01), Reset())

A script that does not end by itself finishes with `stop`. Models without a script go by their
name: `say-20-d5ms` says 20 words 5 ms apart; `cut-`, `reset-`, `stall-` and `break-` do the same
and then end without a finish reason, abort the connection, fall silent, send an error in band;
`status-503` answers so; any other name echoes the last user message, `echo-d20ms` with a pause
after each word. `reset-echo-d20ms` and so on echo half of it when they first hear a message, and do
what they are named for; `hang-` does not answer that call at all, `503-` answers it so.

    python -m tests.fakes.upstream --port 9001        # GET /calls shows what was asked
"""

import argparse
import asyncio
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import orjson
import uvloop
from aiohttp import ClientConnectionResetError, web

CREATED = 1_700_000_000
NAMED = re.compile(r"(say|cut|reset|stall|break)-(\d+)(?:-d(\d+)ms)?")
NAMED_STATUS = re.compile(r"status-(\d{3})")
NAMED_ECHO = re.compile(r"(?:(cut|reset|stall|break|hang|\d{3})-)?echo-d(\d+)ms")


@dataclass(frozen=True)
class Say:
    """Text, in `pieces` or word by word, `every` so many seconds; with `logprobs` a token each."""

    text: str = ""
    every: float = 0.0
    pieces: Sequence[str] | None = None
    choice: int = 0
    logprobs: bool = False


@dataclass(frozen=True)
class Reasoning:
    """Thoughts, word by word, under the name this server has for them."""

    text: str
    every: float = 0.0
    name: str = "reasoning_content"
    choice: int = 0


@dataclass(frozen=True)
class Tool:
    """A tool call: its name first, then its arguments (JSON text) in pieces of `cut` letters."""

    name: str
    arguments: str = "{}"
    id: str = "call_1"
    index: int | None = 0
    cut: int = 4
    choice: int = 0


@dataclass(frozen=True)
class Chunk:
    """One chunk with these fields, `choices` and others; id, object, created, model are added."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Finish:
    """The finish chunk of a choice."""

    reason: str = "stop"
    choice: int = 0


@dataclass(frozen=True)
class Usage:
    """What to report in the end, instead of a count of words and deltas."""

    prompt_tokens: int
    completion_tokens: int
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wait:
    """A pause."""

    seconds: float


@dataclass(frozen=True)
class WaitFor:
    """A pause until the test says go."""

    event: threading.Event


@dataclass(frozen=True)
class Headers:
    """The status line and headers, now; otherwise they leave with the first bytes."""


@dataclass(frozen=True)
class Whole:
    """Ignore `stream: true` and answer with one JSON body."""


@dataclass(frozen=True)
class Status:
    """This status instead of a stream; a dict body is sent as JSON."""

    code: int
    body: Mapping[str, Any] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorInBand:
    """`data: {"error": …}` inside the 200, then the end."""

    error: Mapping[str, Any] | str = field(
        default_factory=lambda: {"message": "The model fell over.", "type": "server_error"}
    )


@dataclass(frozen=True)
class Reset:
    """Abort the TCP connection."""


@dataclass(frozen=True)
class End:
    """End the body here: no finish reason, no `[DONE]`."""


@dataclass(frozen=True)
class Stall:
    """Silence until the client hangs up."""


@dataclass(frozen=True)
class Bytes:
    """These bytes into the body, as they are; as the last step, nothing follows them."""

    raw: bytes


Step = (
    Say | Reasoning | Tool | Chunk | Finish | Usage | Wait | WaitFor | Headers | Whole | Status
) | (ErrorInBand | Reset | End | Stall | Bytes)
Ending = Literal["", "done", "status", "error", "end", "reset", "closed_by_client"]


@dataclass
class Call:
    """One request as it was seen here; times are `time.monotonic()`."""

    model: str
    body: dict[str, Any]
    headers: dict[str, str]
    started_at: float
    target: str = ""
    """The path with its query."""
    deltas: int = 0
    """Chunks sent so far."""
    finished: Ending = ""
    closed_at: float | None = None

    def close(self, ending: Ending) -> None:
        """Note how it ended; the first word stands."""
        if not self.finished:
            self.closed_at = time.monotonic()
            self.finished = ending


class ScriptedUpstream:
    """The server, in a thread with an event loop of its own; a context manager."""

    path = "/{base:.+}/chat/completions"

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.calls: list[Call] = []
        self._scripts: dict[str, list[tuple[Step, ...]]] = {}
        self._counts: dict[str, int] = {}
        self._heard: set[tuple[str, str]] = set()
        self._loop = uvloop.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="scripted-upstream", daemon=True)

    @property
    def base_url(self) -> str:
        """What a catalogue calls `base_url`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def script(self, model: str, *steps: Step) -> None:
        """Every call of `model` does this from now on."""
        self.script_calls(model, steps)

    def script_calls(self, model: str, *scripts: Sequence[Step]) -> None:
        """The first call does the first script, the next the second; the last one repeats."""
        self._scripts[model] = [tuple(script) for script in scripts]
        self._counts[model] = 0

    def calls_of(self, model: str) -> list[Call]:
        """The calls that named this model, in order."""
        return [call for call in self.calls if call.model == model]

    def wait_until(
        self, condition: Callable[["ScriptedUpstream"], object], seconds: float = 5.0
    ) -> None:
        """Poll until the condition holds, or raise `TimeoutError`."""
        deadline = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not so after {seconds} s; calls: {self.calls}")
            time.sleep(0.002)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(10)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self.serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()
            self._loop.close()

    async def serve(self) -> None:
        """Listen until the context ends."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post(self.path, self._complete)
        app.router.add_get("/calls", self._list_calls)
        # With handler_cancellation a client that hangs up is noticed at once, even in a pause.
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=2048)
            await site.start()
            self.port = runner.addresses[0][1]
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _list_calls(self, _: web.Request) -> web.Response:
        body = orjson.dumps([asdict(call) for call in self.calls])
        return web.Response(body=body, content_type="application/json")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        headers = {str(name): value for name, value in request.headers.items()}
        call = Call(body.get("model", ""), body, headers, time.monotonic(), request.path_qs)
        self.calls.append(call)
        answer = self.answer(request, call)
        try:
            return await answer.perform(self._next_script(call.model, body))
        except (asyncio.CancelledError, ClientConnectionResetError):
            call.close("closed_by_client")
            raise

    def answer(self, request: web.Request, call: Call) -> "Answer":
        """What performs the script for this call."""
        return Answer(request, call)

    def _next_script(self, model: str, body: dict[str, Any]) -> tuple[Step, ...]:
        scripts = self._scripts.get(model)
        if not scripts:
            first = (model, _asked(body)) not in self._heard
            self._heard.add((model, _asked(body)))
            return _by_name(model, body, first=first)
        count = self._counts[model]
        self._counts[model] = count + 1
        return scripts[min(count, len(scripts) - 1)]


class Answer:
    """One script on its way out: as a stream, or gathered into one body."""

    def __init__(self, request: web.Request, call: Call) -> None:
        self.request = request
        self.call = call
        self.streaming = bool(call.body.get("stream"))
        self.id = f"chatcmpl-fake-{id(call):x}"
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self.chunks: list[dict[str, Any]] = []
        self.opened: set[int] = set()
        self.finished: set[int] = set()
        self.said = 0
        self.usage: dict[str, Any] | None = None

    async def perform(self, steps: Sequence[Step]) -> web.StreamResponse:
        for step in steps:
            if isinstance(step, Status):
                self.call.close("status")
                return _status(step)
            if isinstance(step, ErrorInBand | Reset | End | Stall):
                return await self._break_off(step)
            if isinstance(step, Say | Reasoning | Tool | Chunk | Finish | Bytes):
                await self._speak(step)
            else:
                await self._arrange(step)
        if steps and isinstance(steps[-1], Bytes):
            return await self._eof("end")
        return await self._conclude()

    async def _speak(self, step: Say | Reasoning | Tool | Chunk | Finish | Bytes) -> None:
        match step:
            case Say():
                await self._say(step)
            case Reasoning():
                for word in _words(step.text):
                    await self._delta(step.choice, {step.name: word})
                    await _pause(step.every)
            case Tool():
                await self._tool(step)
            case Chunk():
                await self._chunk(dict(step.fields))
            case Finish():
                await self._finish(step)
            case Bytes():
                await self._write(step.raw)

    async def _arrange(self, step: Usage | Wait | WaitFor | Headers | Whole) -> None:
        match step:
            case Usage():
                self.usage = _usage(step.prompt_tokens, step.completion_tokens, step.more)
            case Wait():
                await asyncio.sleep(step.seconds)
            case WaitFor():
                while not step.event.is_set():
                    await asyncio.sleep(0.003)
            case Headers():
                await self._prepare()
            case Whole():
                self.streaming = False

    async def _break_off(self, step: ErrorInBand | Reset | End | Stall) -> web.StreamResponse:
        match step:
            case ErrorInBand():
                await self._write(b"data: " + orjson.dumps({"error": step.error}) + b"\n\n")
                await self._write(b"data: [DONE]\n\n")
                return await self._eof("error")
            case Reset():
                # What was written must be on its way before the connection breaks.
                await asyncio.sleep(0.01)
                self.call.close("reset")
                if self.request.transport is not None:
                    self.request.transport.abort()
                return self.response
            case End():
                return await self._eof("end")
            case Stall():
                await asyncio.Event().wait()
        return self.response

    async def _conclude(self) -> web.StreamResponse:
        for choice in sorted(self.opened or {0}):
            if choice not in self.finished:
                await self._finish(Finish(choice=choice))
        if self.usage is None:
            asked = sum(len(str(m.get("content")).split()) for m in self.call.body["messages"])
            self.usage = _usage(asked, self.said, {})
        if not self.streaming:
            self.call.close("done")
            whole = _assemble(self.chunks) | {"id": self.id, "model": self.call.model}
            body = orjson.dumps(whole | {"usage": self.usage})
            return web.Response(body=body, content_type="application/json")
        if (self.call.body.get("stream_options") or {}).get("include_usage"):
            await self._chunk({"choices": [], "usage": self.usage})
        await self._write(b"data: [DONE]\n\n")
        return await self._eof("done")

    async def _say(self, step: Say) -> None:
        for piece in _words(step.text) if step.pieces is None else step.pieces:
            more: dict[str, Any] = {}
            if step.logprobs:
                token = {"token": piece, "logprob": -0.5, "bytes": list(piece.encode())}
                more["logprobs"] = {"content": [token | {"top_logprobs": []}], "refusal": None}
            await self._delta(step.choice, {"content": piece}, **more)
            await _pause(step.every)

    async def _tool(self, step: Tool) -> None:
        place = {} if step.index is None else {"index": step.index}
        named = {"name": step.name, "arguments": ""}
        opening = {**place, "id": step.id, "type": "function", "function": named}
        await self._delta(step.choice, {"tool_calls": [opening]})
        for start in range(0, len(step.arguments), step.cut):
            more = {**place, "function": {"arguments": step.arguments[start : start + step.cut]}}
            await self._delta(step.choice, {"tool_calls": [more]})

    async def _finish(self, step: Finish) -> None:
        await self._open(step.choice)
        chosen = {"index": step.choice, "delta": {}, "finish_reason": step.reason}
        await self._chunk({"choices": [chosen]})

    async def _open(self, choice: int) -> None:
        if choice not in self.opened:
            self.opened.add(choice)
            first = {"role": "assistant", "content": ""}
            await self._chunk(
                {"choices": [{"index": choice, "delta": first, "finish_reason": None}]}
            )

    async def _delta(self, choice: int, delta: dict[str, Any], **more: Any) -> None:
        self.said += 1
        await self._open(choice)
        chosen = {"index": choice, "delta": delta, "finish_reason": None, **more}
        await self._chunk({"choices": [chosen]})

    async def _chunk(self, fields: dict[str, Any]) -> None:
        for chosen in fields.get("choices") or []:
            self.opened.add(chosen.get("index", 0))
            if chosen.get("finish_reason"):
                self.finished.add(chosen.get("index", 0))
        self.call.deltas += 1
        if not self.streaming:
            self.chunks.append(fields)
            return
        head = {"id": self.id, "object": "chat.completion.chunk", "created": CREATED}
        chunk = {**head, "model": self.call.model, **fields}
        await self._write(b"data: " + orjson.dumps(chunk) + b"\n\n")

    async def _prepare(self) -> None:
        if not self.response.prepared:
            await self.response.prepare(self.request)

    async def _write(self, raw: bytes) -> None:
        await self._prepare()
        await self.response.write(raw)

    async def _eof(self, ending: Ending) -> web.StreamResponse:
        await self._prepare()
        await self.response.write_eof()
        self.call.close(ending)
        return self.response


async def _pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+", text)


def _usage(prompt: int, completion: int, more: Mapping[str, Any]) -> dict[str, Any]:
    total = prompt + completion
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return counts | dict(more)


def _status(step: Status) -> web.Response:
    if isinstance(step.body, bytes):
        return web.Response(status=step.code, body=step.body, headers=dict(step.headers))
    words = {"message": f"The fake says {step.code}.", "type": "fake", "param": None, "code": None}
    body = orjson.dumps(step.body if step.body is not None else {"error": words})
    headers = {"Content-Type": "application/json", **step.headers}
    return web.Response(status=step.code, body=body, headers=headers)


ENDS: Mapping[str, Step] = {
    "say": Finish(),
    "cut": End(),
    "reset": Reset(),
    "stall": Stall(),
    "break": ErrorInBand(),
}


def _by_name(model: str, body: dict[str, Any], *, first: bool) -> tuple[Step, ...]:
    if named := NAMED.fullmatch(model):
        verb, count, milliseconds = named.groups()
        said = Say(pieces=[" word"] * int(count), every=int(milliseconds or 0) / 1000)
        return said, ENDS[verb]
    if status := NAMED_STATUS.fullmatch(model):
        return (Status(int(status[1])),)
    if echo := NAMED_ECHO.fullmatch(model):
        return _echo(echo[1] if first else None, _asked(body), int(echo[2]) / 1000)
    return (Say(_asked(body)),)


def _echo(fault: str | None, text: str, every: float) -> tuple[Step, ...]:
    if fault is None:
        return (Say(text, every),)
    if fault == "hang":
        return (Stall(),)
    if fault.isdigit():
        return (Status(int(fault), headers={"Retry-After": "1"} if fault == "429" else {}),)
    words = _words(text)
    return Say(pieces=words[: len(words) // 2], every=every), ENDS[fault]


def _asked(body: dict[str, Any]) -> str:
    asked = [m.get("content") for m in body.get("messages", []) if m.get("role") == "user"]
    last = asked[-1] if asked else ""
    if isinstance(last, list):
        return "".join(part.get("text", "") for part in last)
    return str(last)


def _assemble(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What these chunks are as one `chat.completion`; enough for what the steps above say."""
    found: dict[int, dict[str, Any]] = {}
    for chosen in (one for chunk in chunks for one in chunk.get("choices") or []):
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        blank = {"index": chosen["index"], "message": message, "finish_reason": None}
        choice = found.setdefault(chosen["index"], blank | {"logprobs": None})
        choice["finish_reason"] = chosen.get("finish_reason") or choice["finish_reason"]
        if tokens := (chosen.get("logprobs") or {}).get("content"):
            known = choice["logprobs"] or {"content": [], "refusal": None}
            choice["logprobs"] = known | {"content": known["content"] + tokens}
        _assemble_message(choice["message"], chosen.get("delta") or {})
    for choice in found.values():
        if not choice["message"].get("tool_calls"):
            choice["message"]["content"] = choice["message"]["content"] or ""
    choices = [found[index] for index in sorted(found)]
    return {"object": "chat.completion", "created": CREATED, "choices": choices}


def _assemble_message(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if isinstance(value, str) and value and name != "role":
            message[name] = (message.get(name) or "") + value
    for part in delta.get("tool_calls") or []:
        calls = message.setdefault("tool_calls", [])
        if "id" in part:
            calls.append({key: part[key] for key in part if key != "index"})
        else:
            function = calls[part.get("index", len(calls) - 1)]["function"]
            function["arguments"] += part["function"]["arguments"]


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    with ScriptedUpstream(parser.parse_args().port) as upstream, suppress(KeyboardInterrupt):
        print(upstream.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
