"""Lines a second of one large batch, its CPU per line, and the memory of api and worker.

Real processes on loopback: api, workers, Valkey, and an upstream that answers at once. The batch is
uploaded, made, watched and downloaded by the official SDK.
Machines are noisy: compare figures of one run, and CPU before seconds.

    make bench OF=batches                                      # 50,000 lines on SQLite
    python -m bench.batches --lines 5000 --workers 2 --postgresql
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import openai
import psutil

from shared import revisions
from tests.fakes.upstream import ScriptedUpstream
from tests.postgres import postgres
from tests.stack import SHORT, Process, Stack
from tests.valkey import free_port, valkey

MODEL = "quick"
PRICE = "input_price = 1.0\noutput_price = 2.0"
CREDITS = 1_000_000
LOOK_EVERY = 0.2
MB = 1 << 20


@dataclass(slots=True)
class Watched:
    """One process: the CPU it takes and the memory it has."""

    process: psutil.Process
    first: int
    most: int = 0
    marks: list[float] = field(default_factory=list)
    """CPU seconds at the end of each phase."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """A process, as it is before there is work."""
        process = psutil.Process(pid)
        return cls(process, process.memory_info().rss)

    def look(self) -> None:
        """Note how much memory it has now."""
        self.most = max(self.most, self.process.memory_info().rss)

    def mark(self) -> None:
        """Note how much CPU it has taken so far."""
        self.marks.append(sum(self.process.cpu_times()[:2]))


class Watch:
    """Looks at processes from a thread of its own until the context ends."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.of = {name: Watched.of(pid) for name, pid in pids.items()}
        self.phases: dict[str, float] = {}
        """Their names, and how many seconds they took."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens in this context is one phase."""
        began = time.perf_counter()
        yield
        self.phases[name] = time.perf_counter() - began
        for watched in self.of.values():
            watched.mark()

    def __enter__(self) -> Self:
        for watched in self.of.values():
            watched.mark()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            for watched in self.of.values():
                watched.look()


@contextmanager
def running(asked: argparse.Namespace) -> Iterator[tuple[Stack, Watch]]:
    """A service with default settings, and a watch on its processes."""
    with ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        (home / "valkey").mkdir()
        if asked.postgresql:
            url = opened.enter_context(opened.enter_context(postgres()).fresh())
        else:
            url = f"sqlite:///{home / 'sluice.db'}"
            revisions.migrate(url)
        redis = opened.enter_context(valkey(home / "valkey"))
        upstream = ScriptedUpstream(free_port())  # never started: only its address counts
        stack = opened.enter_context(Stack(home, url, redis.url, upstream))
        stack.offer(MODEL, price=PRICE)
        stack.forked = False
        stack.fund("ours", CREDITS)
        for name in SHORT:
            del stack.environment[name]
        stack.environment["SLUICE_LOG_LEVEL"] = "WARNING"
        answers = stack.start("--port", str(upstream.port), module="bench.upstream")
        api = stack.api()
        workers = [stack.worker() for _ in range(asked.workers)]
        stack.ready(api, *workers)
        yield stack, opened.enter_context(Watch(_pids(api, workers, answers, redis.pid)))


def _pids(api: Process, workers: list[Process], upstream: Process, redis: int) -> dict[str, int]:
    named = {f"worker {number}": worker.pid for number, worker in enumerate(workers, 1)}
    return {"api": api.pid, **named, "upstream": upstream.pid, "valkey": redis}


def write(path: Path, lines: int) -> None:
    """An input of so many small requests."""
    with path.open("w") as file:
        for number in range(lines):
            messages = [{"role": "user", "content": f"Is number {number} fine? Say why."}]
            body = {"model": MODEL, "max_tokens": 100, "messages": messages}
            asked = {"custom_id": f"line-{number}", "method": "POST"}
            file.write(json.dumps({**asked, "url": "/v1/chat/completions", "body": body}) + "\n")


def run(client: openai.OpenAI, watch: Watch, home: Path, lines: int) -> float:
    """Run one batch from upload to download; the seconds to its first result."""
    write(home / "input.jsonl", lines)
    with watch.phase("upload"):
        source = client.files.create(file=home / "input.jsonl", purpose="batch")
    first, began = 0.0, time.perf_counter()
    with watch.phase("run"):
        batch = client.batches.create(
            input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while batch.completed_at is None:
            time.sleep(LOOK_EVERY)
            batch = client.batches.retrieve(batch.id)
            if not first and batch.request_counts and batch.request_counts.completed:
                first = time.perf_counter() - began
    assert batch.output_file_id is not None
    assert batch.request_counts is not None
    assert batch.request_counts.completed == lines, batch
    with watch.phase("download"):
        client.files.content(batch.output_file_id).write_to_file(home / "output.jsonl")
    return first


def main() -> None:
    """Run and print a few lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    asked = parser.parse_args()
    with running(asked) as (stack, watch):
        first = run(stack.client(timeout=3600), watch, stack.home, asked.lines)
    print(f"{asked.lines} lines   first result after {first:.1f} s   load {os.getloadavg()[0]:.1f}")
    for name, seconds in watch.phases.items():
        print(f"  {name:9} {seconds:7.1f} s   {asked.lines / seconds:7.0f} lines/s")
    print(f"ms of CPU a line   {'   '.join(watch.phases)}")
    for name, watched in watch.of.items():
        spent = [
            f"{(after - before) / asked.lines * 1000:.2f}"
            for before, after in zip(watched.marks, watched.marks[1:], strict=False)
        ]
        memory = f"{watched.first // MB} MiB at first, {watched.most // MB} at most"
        print(f"  {name:9} {'   '.join(spent)}   {memory}")


if __name__ == "__main__":
    main()
