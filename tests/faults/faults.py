"""Every fault of the suite: what is done, for how long, and how it heals."""

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import redis
import sqlalchemy

from tests.faults.machine import Machine, Place
from tests.faults.schedule import Kind, Strike, Target
from tests.proxy import Link
from tests.stack import QUICK_LEASES

LEASE = float(QUICK_LEASES["SLUICE_LEASE_TTL"])
STORM_EVERY = 0.25
"""Seconds between two blows of a storm."""
LOST_COMMITS = 3
HOUR = 3600

Act = Callable[[Machine, Strike], None]
ACTS: dict[str, Act] = {}
KINDS: list[Kind] = []


def _fault(
    name: str,
    target: Target,
    lasts: tuple[float, float] = (0.0, 0.0),
    *databases: str,
) -> Callable[[Act], Act]:
    def enter(act: Act) -> Act:
        kind = Kind(name, target, lasts)
        KINDS.append(Kind(name, target, lasts, databases) if databases else kind)
        ACTS[name] = act
        return act

    return enter


def kinds_for(database_url: str) -> list[Kind]:
    """The faults that a database of this kind can have."""
    name = sqlalchemy.make_url(database_url).get_backend_name()
    return [kind for kind in KINDS if name in kind.databases]


@contextmanager
def _struck(machine: Machine, strike: Strike, target: Target) -> Iterator[Place]:
    """The place that is meant; nobody else starts its process again meanwhile."""
    place = machine.places[target][strike.place]
    with place.guarded:
        yield place


def _killed(machine: Machine, strike: Strike, target: Target) -> None:
    with _struck(machine, strike, target) as place:
        place.process.kill()
        time.sleep(strike.lasts)
        machine.start(place)


@_fault("api: kill -9", "api", (0.0, 2.0))
def kill_api(machine: Machine, strike: Strike) -> None:
    """The process is gone with its connections; another takes its port."""
    _killed(machine, strike, "api")


@_fault("worker: kill -9", "worker", (0.0, 2.0))
def kill_worker(machine: Machine, strike: Strike) -> None:
    """The process is gone with what it had in hand; another takes its place."""
    _killed(machine, strike, "worker")


@_fault("beat: kill -9", "beat", (0.0, 5.0))
def kill_beat(machine: Machine, strike: Strike) -> None:
    """Nothing that is urgent hangs on it."""
    _killed(machine, strike, "beat")


@_fault("api: SIGTERM", "api")
def restart_api(machine: Machine, strike: Strike) -> None:
    """A rolling restart: streams end after their grace, clients go on at the other api."""
    with _struck(machine, strike, "api") as place:
        machine.ask_to_end(place)
        machine.start(place)


@_fault("worker: SIGTERM", "worker", (3.0, 3.0))
def restart_worker(machine: Machine, strike: Strike) -> None:
    """A rolling restart: the next one starts while the old one drains and hands back."""
    with _struck(machine, strike, "worker") as place:
        _succeed(machine, place)


@_fault("worker: clock off by an hour", "worker", (3.0, 3.0))
def skew_worker(machine: Machine, strike: Strike) -> None:
    """A rolling restart whose successor is an hour early or late, until it is replaced."""
    seconds = HOUR if strike.place % 2 else -HOUR
    with _struck(machine, strike, "worker") as place:
        _succeed(machine, place, str(seconds), module="tests.faults.skewed")


def _succeed(machine: Machine, place: Place, *arguments: str, module: str = "cli") -> None:
    old = place.process
    old.send(signal.SIGTERM)
    machine.start(place, *arguments, module=module)
    machine.see_off(old)


@_fault("worker: SIGSTOP beyond its lease", "worker", (LEASE + 1.5, LEASE + 4.0))
def freeze_worker(machine: Machine, strike: Strike) -> None:
    """The zombie: its jobs are rescued while it stands still, and then it goes on."""
    with _struck(machine, strike, "worker") as place:
        machine.freeze(place, strike.lasts)


@_fault("worker: Redis cut off", "worker", (2.0, 8.0))
def cut_worker_from_redis(machine: Machine, strike: Strike) -> None:
    """This worker's connections to Redis break, and no new ones are made."""
    _severed(machine.places["worker"][strike.place].redis, Link.cut, strike.lasts)


@_fault("worker: Redis half open", "worker", (2.0, 8.0))
def hang_worker_from_redis(machine: Machine, strike: Strike) -> None:
    """This worker's connections to Redis stay and carry nothing."""
    _severed(machine.places["worker"][strike.place].redis, Link.hang, strike.lasts)


@_fault("worker: database cut off", "worker", (2.0, 9.0), "postgresql")
def cut_worker_from_database(machine: Machine, strike: Strike) -> None:
    """This worker's connections to the database break, and no new ones are made."""
    _severed(machine.places["worker"][strike.place].database, Link.cut, strike.lasts)


@_fault("worker: database half open", "worker", (2.0, 9.0), "postgresql")
def hang_worker_from_database(machine: Machine, strike: Strike) -> None:
    """This worker's connections to the database stay and carry nothing."""
    _severed(machine.places["worker"][strike.place].database, Link.hang, strike.lasts)


def _severed(link: Link | None, how: Callable[[Link], None], seconds: float) -> None:
    assert link is not None
    how(link)
    time.sleep(seconds)
    link.mend()


@_fault("api: database cut off", "api", (8.0, 20.0), "postgresql")
def cut_api_from_database(machine: Machine, strike: Strike) -> None:
    """The same for an api, longer than its readers' jobs would wait for them."""
    _severed(machine.places["api"][strike.place].database, Link.cut, strike.lasts)


@_fault("api: database half open", "api", (8.0, 20.0), "postgresql")
def hang_api_from_database(machine: Machine, strike: Strike) -> None:
    """This api's connections to the database stay and carry nothing."""
    _severed(machine.places["api"][strike.place].database, Link.hang, strike.lasts)


@_fault("worker: COMMIT answers lost", "worker", (1.0, 1.0), "postgresql")
def lose_worker_commits(machine: Machine, strike: Strike) -> None:
    """The database commits, and the worker does not learn of it."""
    _lose_commits(machine.places["worker"][strike.place].database)


@_fault("api: COMMIT answers lost", "api", (1.0, 1.0), "postgresql")
def lose_api_commits(machine: Machine, strike: Strike) -> None:
    """The database commits, and the api does not learn of it."""
    _lose_commits(machine.places["api"][strike.place].database)


def _lose_commits(link: Link | None) -> None:
    assert link is not None
    link.lose_commits(LOST_COMMITS)


@_fault("Redis: kill -9", "redis", (0.0, 3.0))
def kill_redis(machine: Machine, strike: Strike) -> None:
    """It comes back with its append-only file."""
    machine.redis.kill()
    time.sleep(strike.lasts)
    machine.redis.restart()


@_fault("Redis: kill -9, files lost", "redis", (0.0, 3.0))
def lose_redis(machine: Machine, strike: Strike) -> None:
    """It comes back empty: hints, logs and bells are gone."""
    machine.redis.kill()
    time.sleep(strike.lasts)
    shutil.rmtree(machine.redis_files / "appendonlydir")
    machine.redis.restart()


@_fault("Redis: SIGSTOP", "redis", (1.0, 6.0))
def freeze_redis(machine: Machine, strike: Strike) -> None:
    """Connections stay and nothing answers; what was sent is done later."""
    os.kill(machine.redis.pid, signal.SIGSTOP)
    time.sleep(strike.lasts)
    os.kill(machine.redis.pid, signal.SIGCONT)


@_fault("Redis: FLUSHALL", "redis")
def flush_redis(machine: Machine, strike: Strike) -> None:
    """Hints and logs are gone, connections stay."""
    with redis.Redis(port=machine.redis.port) as client:
        client.flushall()


@_fault("Redis: CLIENT KILL normal", "redis", (1.0, 3.0))
def drop_clients(machine: Machine, strike: Strike) -> None:
    """Whoever asks it something is thrown out, again and again."""
    _throw_out(machine, "normal", strike.lasts)


@_fault("Redis: CLIENT KILL pubsub", "redis", (1.0, 3.0))
def drop_subscribers(machine: Machine, strike: Strike) -> None:
    """Whoever listens is thrown out, again and again, and misses what is said meanwhile."""
    _throw_out(machine, "pubsub", strike.lasts)


def _throw_out(machine: Machine, kind: str, seconds: float) -> None:
    with redis.Redis(port=machine.redis.port) as client:
        for _ in _blows(seconds):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


@_fault("database: stopped", "database", (3.0, 10.0), "postgresql")
def stop_database(machine: Machine, strike: Strike) -> None:
    """The server is gone with every connection, new ones are refused, and it starts again."""
    assert machine.postgres is not None
    links = [place.database for place in machine.every_place if place.database is not None]
    with machine.database_guarded:
        machine.postgres.stop()
        for link in links:
            link.cut()
        time.sleep(strike.lasts)
        for link in links:
            link.mend()
        machine.postgres.start()


@_fault("database: backends terminated", "database", (1.0, 3.0), "postgresql")
def terminate_backends(machine: Machine, strike: Strike) -> None:
    """Every connection is closed by the server, again and again."""
    everyone = sqlalchemy.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    engine = sqlalchemy.create_engine(machine.stack.database_url)
    with machine.database_guarded, engine.connect() as connection:
        for _ in _blows(strike.lasts):
            connection.execute(everyone)
    engine.dispose()


@_fault("database: locked", "database", (3.0, 10.0), "sqlite")
def lock_database(machine: Machine, strike: Strike) -> None:
    """Another process holds the write lock."""
    path = sqlalchemy.make_url(machine.stack.database_url).database
    assert path is not None
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(strike.lasts)
        connection.execute("ROLLBACK")


def _blows(seconds: float) -> Iterator[None]:
    """One at once, and one every quarter of a second."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield
        time.sleep(STORM_EVERY)
