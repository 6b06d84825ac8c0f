"""What one run stands on: two apis, three workers, beat, Valkey, a database and an upstream.

Every process has ways of its own to database and Redis, so that one can be cut off alone.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.fakes.upstream import ScriptedUpstream
from tests.faults.schedule import PLACES, Target
from tests.postgres import Postgres
from tests.proxy import Link, through
from tests.stack import PLAIN, QUICK_LEASES, Process, Stack, eventually
from tests.valkey import Valkey, free_port, valkey
from workers.heartbeat import STALLED_EXIT

MISBEHAVIOURS = ("cut", "reset", "stall", "break", "hang", "429", "500")
"""What an upstream does to the first call of a job whose model is named so."""
PACES = ("echo-d20ms", "echo-d40ms")
MODELS = [*PACES, *(f"{fault}-{PACES[0]}" for fault in MISBEHAVIOURS)]
GRACE = 12.0
"""Seconds that a job waits for its reader to come back."""
PRICE = "input_price = 100.0\noutput_price = 300.0"
CREDITS = 100_000
"""Enough for whatever is held at one time."""
SETTINGS = {
    **QUICK_LEASES,
    "SLUICE_MAX_ATTEMPTS": "50",  # it is not the tries that are tested here
    "SLUICE_WORKER_CONCURRENCY": "40",
    "SLUICE_DISCONNECT_GRACE": str(GRACE),
    "SLUICE_HEARTBEAT": "2",
    "SLUICE_CONNECT_TIMEOUT": "2",
    "SLUICE_FIRST_BYTE_TIMEOUT": "3",
    "SLUICE_SILENCE_TIMEOUT": "3",
    "PYTHONFAULTHANDLER": "1",  # what hangs says on SIGABRT where
}
COMMANDS: tuple[Target, ...] = ("beat", "worker", "api")
STARTS_WITHIN, ENDS_WITHIN = 60.0, 30.0
"""Seconds that processes have, on a machine with other work to do."""


@dataclass
class Place:
    """Where a process runs. Its successor takes over its links and, an api's, its port."""

    command: str
    environment: dict[str, str]
    process: Process
    redis: Link | None
    database: Link | None
    guarded: threading.Lock = field(default_factory=threading.Lock)
    """Held by a fault for as long as the process may be away."""


@dataclass
class Freeze:
    """A worker stood still from here to there, by this process's monotonic clock."""

    since: float
    until: float = float("inf")


class Machine:
    """The processes of one run, and what became of them."""

    def __init__(
        self,
        stack: Stack,
        redis: Valkey,
        redis_files: Path,
        postgres: Postgres | None,
        links: ExitStack,
    ) -> None:
        self.stack = stack
        self.redis = redis
        self.redis_files = redis_files
        self.postgres = postgres
        """None: the database is a file."""
        self.database_guarded = threading.Lock()
        """Held by a fault for as long as the database may be away."""
        self.freezes: list[Freeze] = []
        self.deaths: list[str] = []
        """Processes that ended although nobody ended them, or otherwise than they should."""
        self._links = links
        self._frozen: set[int] = set()
        self.places: dict[Target, list[Place]] = {
            command: [self._place(command) for _ in range(PLACES[command])] for command in COMMANDS
        }

    @property
    def every_place(self) -> list[Place]:
        """Apis, workers and beat."""
        return [place for places in self.places.values() for place in places]

    @property
    def urls(self) -> list[str]:
        """The apis' addresses."""
        return [f"http://127.0.0.1:{api.environment['SLUICE_PORT']}" for api in self.places["api"]]

    def start(self, place: Place, *arguments: str, module: str = "cli") -> None:
        """Start a place's process."""
        environment = place.environment
        place.process = self.stack.start(place.command, *arguments, module=module, **environment)

    def ask_to_end(self, place: Place) -> None:
        """SIGTERM, and wait until it has ended as it should."""
        place.process.send(signal.SIGTERM)
        self.see_off(place.process)

    def freeze(self, place: Place, seconds: float) -> None:
        """SIGSTOP a worker for so long, then SIGCONT."""
        period, process = Freeze(time.monotonic()), place.process
        self.freezes.append(period)
        self._frozen.add(process.pid)
        process.send(signal.SIGSTOP)
        time.sleep(seconds)
        process.send(signal.SIGCONT)
        period.until = time.monotonic()

    def supervise(self) -> None:
        """Start again what ended by itself, as whoever runs it would, and note it."""
        for place in self.every_place:
            if place.guarded.acquire(blocking=False):
                try:
                    if not place.process.running:
                        self._note_death(place.process)
                        self.start(place)
                finally:
                    place.guarded.release()

    def end(self) -> None:
        """SIGTERM to all at once, and see how they end."""
        running = [place.process for place in self.every_place if place.process.running]
        for process in running:
            process.send(signal.SIGTERM)
        for process in running:
            self.see_off(process)

    def _place(self, command: Target) -> Place:
        environment, redis, database = {"SLUICE_PORT": str(free_port())}, None, None
        if command != "beat":
            redis = self._links.enter_context(Link(self.redis.port))
            environment["SLUICE_REDIS_URL"] = through(self.stack.redis_url, redis)
            url = self.stack.database_url
            if not url.startswith("sqlite"):
                database = self._links.enter_context(Link.to(url))
                environment["SLUICE_DATABASE_URL"] = through(url, database)
        process = self.stack.start(command, **environment)
        return Place(command, environment, process, redis, database)

    def see_off(self, process: Process) -> None:
        """Wait for the end of a process that was asked to end, and see that it ended well."""
        try:
            code = process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.deaths.append(f"{process.log.name} did not end within {ENDS_WITHIN} s of SIGTERM")
            process.send(signal.SIGABRT)
            process.wait(ENDS_WITHIN)
        else:
            if code != 0:
                self._note_death(process)

    def _note_death(self, process: Process) -> None:
        code = process.wait(0)
        stalled = code == STALLED_EXIT and process.pid in self._frozen
        unborn = code == -signal.SIGTERM and not process.log.stat().st_size
        if not stalled and not unborn:
            self.deaths.append(f"{process.log.name} ended with {code}")


@contextmanager
def running(database_url: str, home: Path, server: Postgres | None) -> Iterator[Machine]:
    """A whole Sluice on this database, of this server, ready; its logs are in `home`."""
    redis_files = home / "valkey"
    redis_files.mkdir()
    with (
        ExitStack() as links,
        valkey(redis_files) as redis,
        ScriptedUpstream() as upstream,
        Stack(home, database_url, redis.url, upstream) as stack,
    ):
        stack.environment |= SETTINGS
        stack.offer(*MODELS, price=PRICE)
        stack.fund("ours", CREDITS)
        machine = Machine(stack, redis, redis_files, server, links)
        for url in machine.urls:
            eventually(lambda url=url: _answers(f"{url}/health/ready"), STARTS_WITHIN)  # type: ignore[misc]
        yield machine


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, verify=PLAIN).status_code == 200
    except httpx.HTTPError:
        return False
