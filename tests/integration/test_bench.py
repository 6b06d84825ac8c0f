"""The bench measures what it says: its upstream, its client, and what a process took."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from bench import load, watch
from bench.answers import asked
from bench.load import Load
from tests.stack import eventually
from tests.valkey import free_port


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """The address of a running upstream."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.upstream", "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _answers(url), 20)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.post(f"{url}/v1/chat/completions", json={"model": "t1"}).is_success
    except httpx.HTTPError:
        return False


def _run(upstream: str, model: str, *, stream: bool, words: int = 0) -> load.Seen:
    body = asked(model, stream=stream)
    wanted = Load(upstream, body, connections=3, requests=6, words=words)
    return asyncio.run(load.run(wanted))


def test_every_word_is_counted_and_timed(upstream: str) -> None:
    """In order, and as old as it is; whether they come one by one or at once."""
    for model in ("t20-d5ms", "t20"):
        seen = _run(upstream, model, stream=True, words=20)

        assert (seen.answers, seen.words, not seen.errors) == (6, 120, True)
        assert (len(seen.first), len(seen.lasted), len(seen.late)) == (6, 6, 120)
        assert all(0 <= late < 5 for late in seen.late)


def test_what_is_missing_is_an_error(upstream: str) -> None:
    """A word too few, a status that is not the good one, an answer that does not end in time."""
    assert sum(_run(upstream, "t19", stream=True, words=20).errors.values()) == 6
    teapot = Load(upstream, asked("t1", stream=False), requests=2, status=418)
    assert sum(asyncio.run(load.run(teapot)).errors.values()) == 2
    slow = Load(upstream, asked("t5-d1000ms", stream=True), requests=1, words=5, patience=0.3)
    assert list(asyncio.run(load.run(slow)).errors) == ["not ended in time"]


def test_what_a_process_takes_is_seen() -> None:
    """CPU seconds and memory, of the time in between."""
    with watch.spending({"me": os.getpid()}) as spent:
        began = time.process_time()
        while time.process_time() - began < 0.2:
            pass

    assert 0.1 < spent[0].cpu["me"] < 5
    assert spent[0].total == spent[0].cpu["me"]
    assert spent[0].memory["me"] > 10 << 20
