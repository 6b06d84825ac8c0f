"""Flower, Celery's own monitor: read-only, and never open to a network without a password."""

import ipaddress
import logging
import signal
from typing import Any

import typer
from pydantic import Field, SecretStr

from cli.failure import USAGE, Failure
from shared.settings import StoreSettings

TASKS_KEPT = 20_000
"""About 100 MB of memory; Flower's own default is five times that."""
WORKER_FORGOTTEN_AFTER = 300
"""Seconds a worker that went away stays in the metrics."""


class FlowerSettings(StoreSettings):
    """Settings of `sluice flower`."""

    flower_host: str = "127.0.0.1"
    flower_port: int = Field(default=5555, ge=1, le=65535)
    flower_prefix: str = ""
    """Serve everything under this path, for a proxy: `flower` for `/flower/`."""
    flower_basic_auth: SecretStr | None = None
    """`user:password`; without it Flower only listens on loopback."""


def serve(settings: FlowerSettings) -> None:
    """Serve Flower until SIGTERM or SIGINT. Raises `Failure` for an unsafe configuration."""
    auth = settings.flower_basic_auth
    if auth is not None and not all(auth.get_secret_value().partition(":")):
        raise Failure("SLUICE_FLOWER_BASIC_AUTH must read user:password.", code=USAGE)
    if auth is None and not _is_loopback(settings.flower_host):
        raise Failure(
            f"Flower on {settings.flower_host} would be open to everybody: set "
            "SLUICE_FLOWER_BASIC_AUTH=user:password, or SLUICE_FLOWER_HOST=127.0.0.1.",
            code=USAGE,
        )

    from flower.app import Flower
    from flower.command import extract_settings
    from flower.options import default_options as options
    from flower.urls import settings as handler_settings

    from shared import queue

    options.address = settings.flower_host
    options.port = settings.flower_port
    options.url_prefix = settings.flower_prefix.strip("/")
    options.basic_auth = [auth.get_secret_value()] if auth else []
    options.read_only = True
    options.max_tasks = TASKS_KEPT
    options.purge_offline_workers = WORKER_FORGOTTEN_AFTER
    # Every wrong password, and every worker that is slow to answer, would be a line.
    for chatty in ("tornado.access", "tornado.general", "flower.inspector"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    extract_settings()  # the prefix of links and of static files follows from the options
    flower = Flower(capp=queue.connect(settings.redis), options=options, **handler_settings)
    _listen(flower, settings)
    loop = flower.io_loop
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: loop.add_callback_from_signal(loop.stop))
    flower.start()
    flower.stop()


def _listen(flower: Any, settings: FlowerSettings) -> None:
    try:
        flower.start_http_server()
    except OSError as error:
        raise Failure(
            f"Flower cannot listen on {settings.flower_host}:{settings.flower_port}: "
            f"{error.strerror or error}. Set SLUICE_FLOWER_PORT to another port.",
            code=USAGE,
        ) from None
    typer.echo(f"Flower answers on {settings.flower_host}:{settings.flower_port}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
