"""What answers cost: a held completion, a streamed word, an open stream, a job in flight."""

import asyncio
from collections import Counter
from typing import Any, Final

from bench import load, watch
from bench.figures import Figure, at, ms
from bench.load import Load, Seen
from bench.service import Target
from bench.watch import Spent

ONCE, PACED, SLOW, SLOWEST = "t32", "t100-d20ms", "t30-d1000ms", "t100-d1000ms"
MODELS: Final = (ONCE, PACED, SLOW, SLOWEST)
KIB: Final = 1024
BEGIN_A_SECOND: Final = 66


def asked(model: str, *, stream: bool) -> dict[str, Any]:
    """A small request."""
    messages = [{"role": "user", "content": "Tell me of canals and of the people who dig them."}]
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {"model": model, "messages": messages, **more}


def _seen(target: Target, asked: Load) -> tuple[Seen, Spent]:
    with watch.spending(target.pids) as spent:
        seen = asyncio.run(load.run(asked))
    return seen, spent[0]


def _to(target: Target, model: str, *, stream: bool, **more: Any) -> Load:
    body = asked(model, stream=stream)
    return Load(target.url, body, key=target.key, headers=target.headers, **more)


def warm(target: Target) -> None:
    """Let everything be imported and connected that a first request brings."""
    for stream in (False, True):
        asyncio.run(load.run(_to(target, ONCE, stream=stream, connections=16, requests=200)))


def held(target: Target) -> Figure:
    """CPU of a held completion, sixteen at a time, of an upstream that answers at once."""
    seen, spent = _seen(target, _to(target, ONCE, stream=False, connections=16, seconds=6.0))
    each = spent.total / seen.answers
    return Figure(
        "CPU of a held completion, 16 at a time",
        "≤ 3.3 ms",
        ms(each),
        f"{seen.rate:.0f}/s, p50 {ms(at(seen.lasted, 0.5))}, p99 {ms(at(seen.lasted, 0.99))}; "
        + by_process(spent, seen.answers),
        wrong(seen.errors),
    )


def words(target: Target, streams: int) -> Figure:
    """CPU of 100,000 words in so many streams, a word every 20 ms."""
    begun = _to(target, PACED, stream=True, connections=streams, requests=3 * streams, words=100)
    begun.ramp = 1.0 if streams <= 100 else 2.0
    seen, spent = _seen(target, begun)
    goal = "≤ 20 s" if streams <= 100 else "none missing"
    return Figure(
        f"CPU of 100,000 words, {streams} streams, 20 ms apart",
        goal,
        f"{spent.total / seen.words * 100_000:.1f} s",
        f"{seen.words / seen.seconds:,.0f} words/s, late by p50 {ms(at(seen.late, 0.5))}, "
        f"p99 {ms(at(seen.late, 0.99))}; " + by_process(spent, seen.words / 1000),
        wrong(seen.errors),
    )


def first(target: Target) -> Figure:
    """How much later the first word comes than from the upstream itself, ten streams at a time."""
    through = _to(target, PACED, stream=True, connections=10, requests=60, ramp=0.3, words=100)
    direct = Load(
        target.upstream_url, through.body, connections=10, requests=60, ramp=0.3, words=100
    )
    slower, _ = _seen(target, through)
    faster, _ = _seen(target, direct)
    p50, p99 = (at(slower.first, part) - at(faster.first, part) for part in (0.5, 0.99))
    return Figure(
        "First word, above the direct call, 10 streams",
        "p50 ≤ 8 ms, p99 ≤ 25 ms",
        f"p50 {ms(p50)}, p99 {ms(p99)}",
        wrong(slower.errors),
    )


def open_streams(target: Target, streams: int) -> Figure:
    """Memory of the api for each open stream, and how late their words are, one a second."""
    before = watch.memory(target.pids)["api"]
    ramp = streams / BEGIN_A_SECOND  # no faster than they can be accepted
    model, words = (SLOW, 30) if ramp < 15 else (SLOWEST, 100)  # all speak when the last begins
    begun = _to(target, model, stream=True, connections=streams, requests=streams, words=words)
    begun.ramp, begun.patience = ramp, 300.0
    seen, spent = _seen(target, begun)
    return Figure(
        f"{streams:,} open streams, a word a second",
        "≤ 60 KiB each, p99 ≤ 250 ms late",
        f"{(spent.memory['api'] - before) / streams / KIB:.0f} KiB each, "
        f"p99 {ms(at(seen.late, 0.99))} late",
        f"{ms(spent.total / spent.seconds)} of CPU a second, "
        f"{sum(spent.memory.values()) >> 20} MiB in all",
        wrong(seen.errors),
    )


def in_flight(target: Target, jobs: int) -> Figure:
    """Memory of one worker with so many jobs in flight."""
    begun = _to(target, SLOW, stream=True, connections=jobs, requests=jobs, words=30)
    begun.ramp, begun.patience = 15.0, 90.0
    seen, spent = _seen(target, begun)
    return Figure(
        f"{jobs:,} jobs in flight on one worker",
        "≤ 200 MiB",
        f"{spent.memory['worker 1'] >> 20} MiB",
        f"late by p99 {ms(at(seen.late, 0.99))}",
        wrong(seen.errors),
    )


def by_process(spent: Spent, units: float) -> str:
    """Milliseconds each process took for a unit."""
    each = (f"{name} {cpu / units * 1000:.2f}" for name, cpu in spent.cpu.items())
    return f"{', '.join(each)} ms"


def wrong(errors: Counter[str]) -> str:
    """What went wrong, in as many words as a line has room for."""
    return ", ".join(f"**{count} × {what}**" for what, count in errors.most_common(3))
