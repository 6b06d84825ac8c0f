"""Processes die during a batch: every line has one result, and everybody hears of it."""

import json
import threading
from collections import defaultdict
from itertools import cycle
from typing import Any

import httpx
import pytest
from sqlmodel import col, select

from shared.tables import Attempt, Job
from tests.bulk import Object, ended, lines, parsed, shown, submitted
from tests.factories import Sessions
from tests.fakes.receiver import Receiver
from tests.fakes.upstream import Say
from tests.stack import PLAIN, Process, Stack, eventually
from tests.valkey import free_port

LINES = 120
PRICE = "input_price = 100.0\noutput_price = 300.0"
CREDITS = 1_000


class Follower:
    """Reads results as they come; when its api dies it goes on at the other one."""

    def __init__(self, key: str, path: str, ports: list[int]) -> None:
        self.seen: list[str] = []
        """The custom ids, in order."""
        self.connections = 0
        self._headers = {"authorization": f"Bearer {key}"}
        self._urls = cycle([f"http://127.0.0.1:{port}{path}/results" for port in ports])
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        more = True
        while more and not self._given_up.wait(0.05):
            params = {"after": len(self.seen), "follow": "true"}
            try:
                more = self._read(next(self._urls), params)
            except httpx.HTTPError:
                more = True

    def _read(self, url: str, params: dict[str, Any]) -> bool:
        asked = httpx.Client(headers=self._headers, timeout=10, verify=PLAIN)
        with asked as client, client.stream("GET", url, params=params) as answer:
            if answer.status_code != 200:
                return True
            self.connections += 1
            self.seen += (json.loads(each)["custom_id"] for each in answer.iter_lines() if each)
            return answer.headers["x-incomplete"] == "true"

    def finish(self) -> list[str]:
        """All it has seen, once it has seen the end."""
        self._thread.join(60)
        return self.seen

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._thread.join()


class Machine:
    """Two apis, two workers and beat, which die and are started again."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.ports = [stack.port, free_port()]
        self.mortal = self._start(self.ports)
        stack.ready(*self.mortal)

    def _start(self, ports: list[int]) -> list[Process]:
        workers = [self.stack.worker() for _ in range(2)]
        return [*(self.stack.api(port) for port in ports), *workers, self.stack.start("beat")]

    def crash(self) -> None:
        """kill -9 for all but the first api, then start them again."""
        lasting, *dying = self.mortal
        for process in dying:
            process.kill()
        self.mortal = [lasting, *self._start(self.ports[1:])]


@pytest.fixture
def machine(stack: Stack) -> Machine:
    """A whole service over models that cost, and receivers of webhooks on loopback."""
    stack.offer("test", price=PRICE)
    stack.fund("ours", CREDITS)
    stack.environment["SLUICE_WORKER_CONCURRENCY"] = "8"
    return Machine(stack)


@pytest.mark.timeout(240)
def test_every_line_has_one_result_whatever_dies(machine: Machine) -> None:
    """Workers, beat and an api are killed while lines are read and run, and once more later."""
    stack = machine.stack
    stack.upstream.script("test", Say(pieces=[" word"] * 5, every=0.1))
    http = stack.http()
    with Receiver() as receiver:
        webhook = {"url": receiver.url("/done"), "events": ["batch.completed"]}
        batch = submitted(http, *lines(LINES), webhook=webhook)
        path = f"/v1/batches/{batch['id']}"
        with Follower(stack.key, path, machine.ports[::-1]) as follower:
            for results in (1, LINES // 3):
                eventually(lambda enough=results: shown(http, batch)["last_result"] >= enough, 60)  # type: ignore[misc]
                machine.crash()
            done = ended(http, batch, within=120)
            followed = follower.finish()
        eventually(lambda: receiver.at("/done"), 30)
        told = receiver.at("/done")

    assert done["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert done["counts"]["completed"] == done["last_result"] == LINES
    stored = parsed(http.get(f"{path}/results").text)
    wanted = sorted(f"line-{number}" for number in range(LINES))
    assert sorted(each["custom_id"] for each in stored) == wanted
    assert followed == [each["custom_id"] for each in stored]
    assert follower.connections > 1
    output = parsed(http.get(f"/v1/files/{done['output_file_id']}/content").text)
    assert sorted(each["custom_id"] for each in output) == wanted
    assert {each["response"]["body"]["choices"][0]["message"]["content"] for each in output} == {
        " word" * 5
    }
    assert {one.id for one in told} == {told[0].id}
    assert told[0].event["type"] == "batch.completed"
    assert told[0].event["data"]["request_counts"] == done["request_counts"]
    tried = outcomes(stack, batch)
    assert [each.count("completed") for each in tried] == [1] * LINES
    assert max(map(len, tried)) > 1, "nothing ran when the workers died"
    credits = http.get("/v1/credits/balance").json()
    assert credits["held_credits"] == 0
    assert credits["remaining_credits"] == pytest.approx(CREDITS - done["cost"]["credits"])


def outcomes(stack: Stack, batch: Object) -> list[list[str | None]]:
    """How the attempts at each of its lines ended."""
    tries = (
        select(Attempt.job_id, Attempt.outcome)
        .join(Job, col(Job.id) == col(Attempt.job_id))
        .where(col(Job.batch_id) == batch["id"])
    )
    found = defaultdict(list)
    sessions = Sessions(stack.database_url)
    with sessions() as session:
        for job_id, outcome in session.exec(tries):
            found[job_id].append(outcome)
    sessions.close()
    return list(found.values())
