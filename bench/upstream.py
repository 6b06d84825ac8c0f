"""An upstream of OpenAI's dialect that costs next to nothing; a model's name says what it does.

`t100-d20ms` says 100 words, one every 20 ms; `t32` says 32 at once; other models say 4. Each word
has the moment at which it was sent, in nanoseconds of this machine's monotonic clock, and its
number: `@0000012345678901234:00007 `. So a client on the same machine knows how old a word is when
it comes, and whether one is missing.

    python -m bench.upstream --port 9001
"""

import argparse
import asyncio
import re
from functools import cache
from time import monotonic_ns
from typing import Any, Final, cast

import orjson
import uvloop

MARK: Final = re.compile(rb"@(\d{19}):(\d{5}) ")
"""A word: when it was sent, and which it is, from 0 on."""
_WORD: Final = b"@%019d:%05d "
_NAME: Final = re.compile(r"t(?P<words>\d+)(?:-d(?P<every>\d+)ms)?")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_PLAIN: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class Model:
    """What one name stands for, encoded once."""

    def __init__(self, name: str) -> None:
        found = _NAME.fullmatch(name)
        self.words = int(found["words"]) if found else 4
        self.every = int(found["every"] or 0) / 1000 if found else 0.0
        """Seconds between two words."""
        usage = {"prompt_tokens": 8, "completion_tokens": self.words}
        self._named = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": name}
        self._usage = {"usage": {**usage, "total_tokens": 8 + self.words}}
        self._before, _, self._after = self._event({"content": "%"}).partition(b"%")
        self.begin = self._event({"role": "assistant", "content": ""})
        self.end = self._event({}, "stop") + self._chunk([], self._usage) + b"data: [DONE]\n\n"

    def word(self, number: int) -> bytes:
        """The event of one word, sent now."""
        return self._before + _WORD % (monotonic_ns(), number) + self._after

    def answer(self) -> bytes:
        """All of it as a `chat.completion`."""
        said = b"".join(_WORD % (monotonic_ns(), number) for number in range(self.words)).decode()
        choice = {"index": 0, "message": {"role": "assistant", "content": said}}
        return orjson.dumps(
            {
                **self._named,
                "object": "chat.completion",
                "choices": [{**choice, "finish_reason": "stop"}],
                **self._usage,
            }
        )

    def _event(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": finish}], {})

    def _chunk(self, choices: list[object], more: dict[str, Any]) -> bytes:
        named = {**self._named, "object": "chat.completion.chunk"}
        return b"data: %b\n\n" % orjson.dumps({**named, "choices": choices, **more})


@cache
def model_of(name: str) -> Model:
    """The model of that name."""
    return Model(name)


class Upstream(asyncio.Protocol):
    """A connection; it has one request at a time."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say no more to who has left."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer a request once all of it is here."""
        self._received += data
        head, complete, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not complete or len(body) < (expected := int(length[1]) if length else 0):
            return
        self._received = body[expected:]
        self._answer(orjson.loads(body[:expected] or b"{}"))

    def _answer(self, asked: dict[str, Any]) -> None:
        model = model_of(asked.get("model", ""))
        if not asked.get("stream"):
            answer = model.answer()
            self._transport.write(_PLAIN % (len(answer), answer))
        elif model.every:
            self._transport.write(_STREAM + _chunked(model.begin))
            self._due = self._loop.time()
            self._say(model, 0)
        else:
            words = b"".join(model.word(number) for number in range(model.words))
            self._transport.write(_STREAM + _chunked(model.begin + words + model.end) + _LAST)

    def _say(self, model: Model, number: int) -> None:
        if number == model.words:
            self._transport.write(_chunked(model.end) + _LAST)
            return
        self._transport.write(_chunked(model.word(number)))
        self._due += model.every  # by the plan, so that lateness does not add up
        self._timer = self._loop.call_at(self._due, self._say, model, number + 1)


_LAST: Final = b"0\r\n\r\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(port: int) -> None:
    """Listen on loopback until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", port, backlog=8192)
    await server.serve_forever()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
