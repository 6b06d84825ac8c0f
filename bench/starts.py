"""How long a process takes from its first instruction until it is ready."""

import time

import httpx

from bench.figures import Figure
from bench.service import Service
from tests.stack import PLAIN, Process, eventually
from tests.valkey import free_port

ROUNDS = 3


def figures(service: Service) -> list[Figure]:
    """The best of a few starts of an api and of a worker."""
    api = min(_api(service) for _ in range(ROUNDS))
    worker = min(_worker(service) for _ in range(ROUNDS))
    return [
        Figure("Start of an api, until it answers", "≤ 1.5 s", f"{api:.2f} s"),
        Figure("Start of a worker, until it takes jobs", "≤ 1.5 s", f"{worker:.2f} s"),
    ]


def _api(service: Service) -> float:
    port, began = free_port(), time.perf_counter()
    process = service.stack.start("api", SLUICE_PORT=str(port))
    eventually(lambda: _answers(f"http://127.0.0.1:{port}/health/live"))
    return _ended(process, time.perf_counter() - began)


def _worker(service: Service) -> float:
    began = time.perf_counter()
    process = service.stack.start("worker", SLUICE_LOG_LEVEL="INFO")  # which says when it is ready
    eventually(lambda: " ready." in process.log.read_text())
    return _ended(process, time.perf_counter() - began)


def _ended(process: Process, seconds: float) -> float:
    process.stop()
    return seconds


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, verify=PLAIN).status_code == 200
    except httpx.HTTPError:
        return False
