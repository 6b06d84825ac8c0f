"""How many jobs come in and go out: one by one, in bulk, and through a worker."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Final

import httpx

from bench import load, watch
from bench.answers import ONCE, asked, wrong
from bench.figures import Figure, ms
from bench.load import Load
from bench.service import Service

ARRAY: Final = 1_000
ARRAYS: Final = 20
LINES: Final = 10_000
LOOK_EVERY: Final = 0.05
DRAIN_FOR: Final = 20.0


def accepts(service: Service) -> Figure:
    """Durable accepts a second of one api: background requests, 32 at a time; no worker runs."""
    body = asked(ONCE, stream=False) | {"background": True}
    wanted = Load(service.url, body, key=service.key, connections=32, seconds=6.0, status=202)
    with watch.spending(service.pids) as spent:
        seen = asyncio.run(load.run(wanted))
    each = spent[0].cpu["api"] / seen.answers
    return Figure(
        "Durable accepts of one api, 32 at a time",
        "≥ 1.5 × Celery's `apply_async`",
        f"{seen.rate:,.0f}/s",
        f"{ms(each)} of the api's CPU each",
        wrong(seen.errors),
    )


def bulk(service: Service) -> Figure:
    """Jobs a second in arrays of a thousand; no worker runs."""
    one = asked(ONCE, stream=False)
    wanted = Load(
        service.url,
        [one] * ARRAY,
        path="/v1/jobs",
        key=service.key,
        connections=4,
        requests=ARRAYS,
        status=202,
    )
    with watch.spending(service.pids) as spent:
        seen = asyncio.run(load.run(wanted))
    jobs = seen.answers * ARRAY
    return Figure(
        "Bulk submit, arrays of 1,000",
        "≥ 10,000 jobs/s (PostgreSQL)",
        f"{jobs / seen.seconds:,.0f} jobs/s",
        f"{ms(spent[0].total / jobs)} of CPU a job",
        wrong(seen.errors),
    )


def drain(service: Service) -> Figure:
    """Jobs a second that one worker ends, of those that wait, with an upstream that answers at
    once."""
    service.add_worker()
    before = unfinished(service)
    with watch.spending(service.pids) as spent:
        began = time.perf_counter()
        while (left := unfinished(service)) and time.perf_counter() - began < DRAIN_FOR:
            time.sleep(LOOK_EVERY)
        seconds = time.perf_counter() - began
    ended = before - left
    return Figure(
        "Drain by one worker, instant upstream",
        "≥ Celery's no-op rate",
        f"{ended / seconds:,.0f} jobs/s",
        f"{ms(spent[0].cpu['worker 1'] / ended)} of the worker's CPU a job",
    )


def unfinished(service: Service) -> int:
    """How many jobs wait or run, by the queue's own word."""
    headers = {"authorization": f"Bearer {service.key}"}
    lanes = httpx.get(f"{service.url}/v1/queue", headers=headers).json()["lanes"]
    return sum(lane["depth"] + lane["running"] for lane in lanes)


def batch(service: Service) -> Figure:
    """Lines a second of one batch, from its creation to its end, by the official SDK."""
    client = service.stack.client(timeout=3600)
    with watch.spending(service.pids) as spent:
        source = client.files.create(file=_lines(service.stack.home), purpose="batch")
        began = time.perf_counter()
        made = client.batches.create(
            input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while made.completed_at is None:
            time.sleep(LOOK_EVERY)
            made = client.batches.retrieve(made.id)
        seconds = time.perf_counter() - began
    counts = made.request_counts
    errors = Counter({"failed": counts.failed} if counts and counts.failed else {})
    return Figure(
        f"A batch of {LINES:,} lines, one worker",
        "",
        f"{LINES / seconds:,.0f} lines/s",
        f"{ms(spent[0].cpu['worker 1'] / LINES)} of the worker's CPU a line, "
        f"{ms(spent[0].cpu['api'] / LINES)} of the api's",
        wrong(errors),
    )


def _lines(home: Path) -> Path:
    path = home / "input.jsonl"
    with path.open("w") as file:
        for number in range(LINES):
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": asked(ONCE, stream=False)}) + "\n")
    return path
