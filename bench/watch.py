"""CPU and memory of processes and of what they started."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil

DATABASE: Final = "postgresql"
LOOK_EVERY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent between two moments."""

    seconds: float
    cpu: Mapping[str, float]
    """CPU seconds of each process, those it started included."""
    memory: Mapping[str, int]
    """The most bytes that each had meanwhile."""

    @property
    def total(self) -> float:
        """CPU seconds of all that are ours: a PostgreSQL server is counted by itself."""
        return sum(cpu for name, cpu in self.cpu.items() if name != DATABASE)


@contextmanager
def spending(pids: Mapping[str, int]) -> Iterator[list[Spent]]:
    """Watch these processes; what the context took is in the list once it has ended."""
    trees = {name: psutil.Process(pid) for name, pid in pids.items()}
    found: list[Spent] = []
    most, over = memory(pids), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            for name, now in memory(pids).items():
                most[name] = max(most[name], now)

    thread = threading.Thread(target=look)
    thread.start()
    began, before = time.perf_counter(), _cpu(trees)
    try:
        yield found
        seconds, after = time.perf_counter() - began, _cpu(trees)
    finally:
        over.set()
        thread.join()
    cpu = {name: after[name] - before[name] for name in after}
    last = memory(pids)
    found.append(Spent(seconds, cpu, {name: max(most[name], last[name]) for name in most}))


def memory(pids: Mapping[str, int]) -> dict[str, int]:
    """Bytes that each has now, shared pages counted once for each."""
    return {
        name: sum(process.memory_info().rss for process in _all(psutil.Process(pid)))
        for name, pid in pids.items()
    }


def _cpu(trees: Mapping[str, psutil.Process]) -> dict[str, float]:
    return {
        name: sum(sum(process.cpu_times()[:2]) for process in _all(tree))
        for name, tree in trees.items()
    }


def _all(tree: psutil.Process) -> list[psutil.Process]:
    return [tree, *tree.children(recursive=True)]
