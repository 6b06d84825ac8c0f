"""What `sluice up` starts: which processes, on which ports, with which environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from api.settings import ApiSettings
from cli import model, ports, valkey

VALKEY: Final = "valkey"
MODEL: Final = "model"
GROUND: Final = frozenset({VALKEY, MODEL})
"""What the others stand on: they are stopped first, so that a worker can drain in peace."""
RELOAD: Final = ("worker", "api")
"""Those that read the catalogue anew on SIGHUP: who runs a model before who offers it."""
WORKER_DRAINS: Final = "PT5S"
API_DRAINS: Final = "PT3S"
"""Both in ISO 8601, and shorter than in production: somebody waits at the terminal."""


class MachineSettings(ApiSettings):
    """Settings of `sluice up`; a port that is not set is any free one."""

    port: int = Field(default=8080, ge=1, le=65535)
    model_url: str | None = None
    """An OpenAI-compatible server to use instead of the embedded model."""
    valkey_port: int | None = Field(default=None, ge=1, le=65535)
    model_port: int | None = Field(default=None, ge=1, le=65535)
    flower_port: int | None = Field(default=None, ge=1, le=65535)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before the first process starts."""

    url: str
    flower_url: str
    model_health: str | None
    """Answers 200 once the embedded model can be used; None without it."""
    settings: Mapping[str, str]
    """What the processes are told beyond the environment of `up` itself."""
    commands: Mapping[str, list[str]]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every child."""
        return {**os.environ, **self.settings, "PYTHONUNBUFFERED": "1"}


def plan(settings: MachineSettings, flower_auth: str) -> Plan:
    """Choose ports and commands. Raises `Failure` for a port that is taken, or a missing wheel."""
    told = {
        "SLUICE_HOME": str(settings.home.absolute()),
        "SLUICE_PORT": str(ports.claim("SLUICE_PORT", settings.host, settings.port)),
        "SLUICE_LOG_FORMAT": os.environ.get("SLUICE_LOG_FORMAT", "console"),
        "SLUICE_DRAIN": os.environ.get("SLUICE_DRAIN", WORKER_DRAINS),
        "SLUICE_SHUTDOWN_GRACE": os.environ.get("SLUICE_SHUTDOWN_GRACE", API_DRAINS),
    }
    commands: dict[str, list[str]] = {}

    if "redis_url" not in settings.model_fields_set:
        port = _port("SLUICE_VALKEY_PORT", settings.valkey_port)
        commands[VALKEY] = valkey.command(settings.home / "valkey", port)
        told["SLUICE_REDIS_URL"] = f"redis://{ports.LOOPBACK}:{port}/0"

    model_health = None
    if settings.model_url is None:
        model.weights()
        port = _port("SLUICE_MODEL_PORT", settings.model_port)
        commands[MODEL] = _sluice(MODEL, "--port", str(port))
        told["SLUICE_MODEL_URL"] = f"http://{ports.LOOPBACK}:{port}/v1"
        model_health = f"http://{ports.LOOPBACK}:{port}/health"

    for name in ("api", "worker", "beat", "flower"):
        commands[name] = _sluice(name)
    flower_port = _port("SLUICE_FLOWER_PORT", settings.flower_port)
    told |= {
        "SLUICE_FLOWER_HOST": ports.LOOPBACK,
        "SLUICE_FLOWER_PORT": str(flower_port),
        "SLUICE_FLOWER_BASIC_AUTH": flower_auth,
    }
    host = ports.LOOPBACK if ports.is_everywhere(settings.host) else settings.host
    prefix = os.environ.get("SLUICE_FLOWER_PREFIX", "").strip("/")
    return Plan(
        url=f"http://{f'[{host}]' if ':' in host else host}:{told['SLUICE_PORT']}",
        flower_url=f"http://{ports.LOOPBACK}:{flower_port}/{prefix}",
        model_health=model_health,
        settings=told,
        commands=commands,
    )


def _port(variable: str, wanted: int | None) -> int:
    return ports.free() if wanted is None else ports.claim(variable, ports.LOOPBACK, wanted)


def _sluice(*words: str) -> list[str]:
    # -P: a folder called `api` where the user happens to be must not be imported instead of ours.
    return [sys.executable, "-P", "-m", "cli", *words]
