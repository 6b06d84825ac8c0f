"""Flower beside a working service: it looks and touches nothing, and sees no prompt."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from shared import queue
from tests import sqlite
from tests.fakes.upstream import ScriptedUpstream
from tests.stack import Stack, eventually
from tests.valkey import Valkey, free_port

SECRET = "Xylophonic-Marmalade"
AUTH = ("sluice", "made-up")
CHANGES = (
    "/api/worker/shutdown/{worker}",
    "/api/worker/pool/grow/{worker}",
    "/api/worker/queue/cancel-consumer/{worker}",
    "/api/task/async-apply/sluice.run_job",
    "/api/task/send-task/sluice.run_job",
    "/api/task/revoke/{task}",
)
VIEWS = ("/api/tasks", "/api/task/info/{task}", "/api/workers", "/task/{task}", "/tasks", "/broker")


@pytest.fixture
def flower(
    tmp_path: Path, redis_server: Valkey, upstream: ScriptedUpstream
) -> Iterator[tuple[Stack, httpx.Client]]:
    """A service, and a client of its Flower that knows the password."""
    url, port = sqlite.fresh(tmp_path), free_port()
    with (
        Stack(tmp_path, url, redis_server.url, upstream) as stack,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=AUTH, timeout=10) as client,
    ):
        stack.start("flower", SLUICE_FLOWER_PORT=str(port), SLUICE_FLOWER_BASIC_AUTH=":".join(AUTH))
        stack.up()
        eventually(lambda: healthy(client), 30)
        [log] = tmp_path.glob("worker-*.log")
        eventually(lambda: "enabled by remote" in log.read_text(), 30)  # Flower asked for events
        yield stack, client


def healthy(client: httpx.Client) -> bool:
    """Whether Flower answers."""
    try:
        return client.get("/healthcheck").status_code == 200
    except httpx.HTTPError:
        return False


class Listener:
    """Hears, as Flower does, all that workers tell of their tasks, until one has succeeded."""

    def __init__(self, redis_url: str) -> None:
        self.heard: list[dict[str, Any]] = []
        self._connection = queue.connect(redis_url).connection_for_read()
        self._receiver = queue.connect(redis_url).events.Receiver(
            self._connection, handlers={"*": self._hear}
        )
        self._thread = Thread(target=self._receiver.capture, kwargs={"timeout": 60}, daemon=True)

    def _hear(self, event: dict[str, Any]) -> None:
        self.heard.append(event)
        self._receiver.should_stop = event["type"] == "task-succeeded"

    def __enter__(self) -> "Listener":
        self._thread.start()
        eventually(lambda: self.heard, 20)  # a worker's heartbeat
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        self._connection.release()


def test_flower_only_looks_and_sees_no_prompt(flower: tuple[Stack, httpx.Client]) -> None:
    """It knows the task and the job's id; whatever would change something is refused."""
    stack, client = flower
    words = [{"role": "user", "content": SECRET}]
    with Listener(stack.redis_url) as listener:
        answer = stack.http().post(
            "/v1/chat/completions", json={"model": "test", "messages": words}
        )
    assert SECRET in answer.text
    [(task, seen)] = eventually(lambda: client.get("/api/tasks").json(), 20).items()
    assert seen["args"] == f"['{answer.headers['x-job-id'].removeprefix('job_')}']"
    names = {"task": task, "worker": seen["worker"]}

    shown = [client.get(view.format(**names)) for view in VIEWS]
    refused = [client.post(change.format(**names)) for change in CHANGES]

    assert [each.status_code for each in shown] == [200] * len(VIEWS)
    assert SECRET not in "".join(each.text for each in shown)
    assert {event["type"] for event in listener.heard} >= {"task-received", "task-succeeded"}
    assert SECRET not in str(listener.heard)
    assert [each.status_code for each in refused] == [403] * len(CHANGES)
    assert httpx.get(client.base_url.join("/api/tasks")).status_code == 401
    # Only these two ask for no password, which is why Flower is not opened to a network.
    assert SECRET not in httpx.get(client.base_url.join("/metrics")).text
