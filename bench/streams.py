"""CPU per streamed delta in api and worker, and the time to the first delta against a direct call.

Real processes on loopback: api, worker, Valkey, with SQLite and the tests' scripted upstream.
Machines are noisy: compare figures of one run, and CPU before seconds.

    make bench                          # 100 streams, 100 deltas each, 20 ms apart
    python -m bench.streams --streams 10 --every 0.05
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import psutil

from shared import revisions
from tests.fakes.upstream import ScriptedUpstream
from tests.stack import Stack
from tests.valkey import valkey

ALONE = 40
"""Requests, one after another, that the first delta is timed on."""


@contextmanager
def running(models: list[str]) -> Iterator[tuple[Stack, dict[str, psutil.Process]]]:
    """A service with default settings, and its processes to watch."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "valkey").mkdir()
        url = f"sqlite:///{home / 'sluice.db'}"
        revisions.migrate(url)
        with (
            ScriptedUpstream() as upstream,
            valkey(home / "valkey") as redis,
            Stack(home, url, redis.url, upstream) as stack,
        ):
            stack.offer(*models)
            stack.forked = False
            stack.environment["SLUICE_LOG_LEVEL"] = "WARNING"
            worker, api = stack.worker(), stack.api()
            stack.ready(api, worker)
            pids = {"api": api.pid, "worker": worker.pid, "valkey": redis.pid}
            yield stack, {name: psutil.Process(pid) for name, pid in pids.items()}


async def one(session: aiohttp.ClientSession, url: str, model: str) -> tuple[float, int]:
    """Stream one completion; seconds to its first delta, and how many there were."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Go"}]}
    began, first, deltas = time.perf_counter(), 0.0, 0
    async with session.post(f"{url}/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {") and b'"content":" ' in line:
                first = first or time.perf_counter() - began
                deltas += 1
    return first, deltas


async def alone(url: str, key: str, model: str) -> list[float]:
    """Seconds to the first delta of requests that come one after another."""
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:
        await one(session, url, model)
        return [(await one(session, url, model))[0] for _ in range(ALONE)]


async def together(url: str, key: str, model: str, streams: int) -> tuple[list[float], int, float]:
    """So many streams at once: their first deltas, all deltas, and the seconds it took."""
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        began = time.perf_counter()
        found = await asyncio.gather(*(one(session, url, model) for _ in range(streams)))
        seconds = time.perf_counter() - began
    return [first for first, _ in found], sum(count for _, count in found), seconds


def main() -> None:
    """Run and print a few lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--deltas", type=int, default=100)
    parser.add_argument("--every", type=float, default=0.02, help="seconds between two deltas")
    asked = parser.parse_args()
    paced = f"say-{asked.deltas}-d{round(asked.every * 1000)}ms"
    short = "say-4"
    with running([paced, short]) as (stack, watched):
        url, key = f"{stack.url}/v1", stack.key
        direct = asyncio.run(alone(stack.upstream.base_url, key, short))
        queued = asyncio.run(alone(url, key, short))
        asyncio.run(together(url, key, paced, 5))  # warm
        before = {name: sum(process.cpu_times()[:2]) for name, process in watched.items()}
        firsts, deltas, seconds = asyncio.run(together(url, key, paced, asked.streams))
        spent = {name: sum(watched[name].cpu_times()[:2]) - before[name] for name in watched}
        memory = {name: process.memory_info().rss >> 20 for name, process in watched.items()}
    print(f"first delta, one at a time   direct {_ms(direct)}   queued {_ms(queued)}")
    print(f"{asked.streams} streams   {deltas} deltas in {seconds:.1f} s   first {_ms(firsts)}")
    for name, cpu in spent.items():
        print(f"  {name:8} {cpu / deltas * 1e6:6.0f} µs a delta   {memory[name]} MiB")


def _ms(seconds: list[float]) -> str:
    high = quantiles(seconds, n=20)[-1]
    return f"{median(seconds) * 1000:.1f} ms (p95 {high * 1000:.1f})"


if __name__ == "__main__":
    main()
