"""docker-compose.yml and the Dockerfile, as far as they can be judged without an engine."""

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.house.commands import why_unknown
from tests.house.repository import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
EACH = [pytest.param(service, id=name) for name, service in SERVICES.items()]
EACH_OF_OURS = [pytest.param(service, id=name) for name, service in OURS.items()]


def test_it_is_a_compose_file() -> None:
    """By the Compose specification's own schema."""
    # Located, not imported: only the package's data is wanted.
    schemas = distribution("check-jsonschema").locate_file("check_jsonschema/builtin_schemas")
    text = Path(str(schemas), "vendor", "compose-spec.json").read_text(encoding="utf-8")

    jsonschema.validate(COMPOSE, json.loads(text))


def test_the_whole_service_is_there() -> None:
    """Every process, and what they stand on."""
    assert set(SERVICES) == {"api", "worker", "beat", "flower", "migrate", "postgres", "redis"}


@pytest.mark.parametrize("service", EACH_OF_OURS)
def test_every_command_exists(service: dict[str, Any]) -> None:
    """What a container is told to run is a command of the CLI, with its options."""
    assert why_unknown(service["command"]) is None


@pytest.mark.parametrize("service", EACH)
def test_a_service_comes_back_and_says_how_it_is(service: dict[str, Any]) -> None:
    """It restarts, and is checked: by itself, by its image, or not at all on purpose."""
    assert service["restart"] in ("unless-stopped", "on-failure:5")
    assert "healthcheck" in service or service["command"][0] == "api"


def test_no_secret_is_written_down() -> None:
    """Passwords come from outside, and without them nothing starts."""
    values = re.findall(r"(?:PASSWORD|AUTH|KEY|SECRET)\w*: (.+)", TEXT)
    in_urls = re.findall(r"://\w*:(.+?)@", TEXT)

    assert values
    assert in_urls
    assert [value for value in values + in_urls if not re.match(r"\$\{\w+:\?", value)] == []


def test_every_variable_is_explained() -> None:
    """.env.example names what must be set, with no value for a secret."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    required = set(re.findall(r"\$\{(\w+):\?", TEXT))

    assert required
    assert required == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))


def paths(files: list[dict[str, Any]]) -> set[str]:
    """Where a service's environment is read from."""
    return {file["path"] for file in files}


def test_only_workers_are_given_the_keys_of_upstreams() -> None:
    """The api could not call a model if it wanted to."""
    files = {name: service.get("env_file", []) for name, service in SERVICES.items()}
    assert [name for name in files if {"upstreams.env"} & paths(files[name])] == ["worker"]


def test_workers_can_be_scaled() -> None:
    """No name and no port that a second one would have to share."""
    assert {"container_name", "ports", "hostname"}.isdisjoint(SERVICES["worker"])


def test_only_the_api_is_reached_from_outside() -> None:
    """Flower is for this machine; its /metrics asks for no password."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert set(published) == {"api", "flower"}
    assert all(port.startswith("127.0.0.1:") for port in published["flower"])


@pytest.mark.parametrize("service", EACH_OF_OURS)
def test_our_containers_have_no_rights_to_lose(service: dict[str, Any]) -> None:
    """A read-only file system, no capabilities, and no way to more."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_redis_keeps_what_it_is_given() -> None:
    """Hints survive a restart, and none is evicted."""
    command = " ".join(SERVICES["redis"]["command"])

    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_image_runs_as_nobody_and_stops_when_asked() -> None:
    """Its last stage leaves root behind, and gives signals to the process itself."""
    last = (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]

    assert "\nUSER sluice\n" in last
    assert "\nSTOPSIGNAL SIGTERM\n" in last
    assert '\nENTRYPOINT ["sluice"]\n' in last
    assert "\nHEALTHCHECK " in last
