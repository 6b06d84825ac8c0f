"""One command per process: what runs in production, and what `sluice up` runs on one machine."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from cli.failure import FAILED, Failure
from cli.options import DEFAULT_HOME, Home

ValkeyPort = Annotated[int, typer.Option(envvar="SLUICE_VALKEY_PORT", help="Port on loopback.")]
ModelPort = Annotated[int, typer.Option(envvar="SLUICE_MODEL_PORT", help="Port on loopback.")]

YOUNG: Final = 10_000
"""Objects from which on garbage is looked for among the new ones. Those of a few requests, or of an
array of jobs, are still in use by Python's own 700, and are gone by then."""


@contextmanager
def _imported_for_good() -> Iterator[None]:
    # Modules stay until the end: looking for garbage among them is a fifth of the time it takes to
    # import them, and of every full collection afterwards the most.
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(YOUNG)
        gc.enable()


def api(
    host: Annotated[str | None, typer.Option(help="Address; else SLUICE_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; else SLUICE_PORT.")] = None,
) -> None:
    """Serve the HTTP API, in one process. Start as many as you like.

    Example: `sluice api --host 0.0.0.0 --port 8080`
    """
    with _imported_for_good():
        from api import server
        from api.settings import ApiSettings
        from cli import configuration
        from shared import log

    settings = configuration.read(ApiSettings, host=host, port=port)
    log.configure(settings, "api")
    if not server.serve(settings):
        raise Failure("The API did not start; the log says why.", code=FAILED)


def worker(
    concurrency: Annotated[
        int | None, typer.Option(help="Jobs in flight; else SLUICE_WORKER_CONCURRENCY.")
    ] = None,
) -> None:
    """Claim jobs and call the models, in one process. Start one per core.

    Example: `SLUICE_CATALOG=models.toml sluice worker --concurrency 1000`
    """
    with _imported_for_good():
        from cli import configuration
        from workers import app
        from workers.settings import WorkerSettings

    settings = configuration.read(WorkerSettings, worker_concurrency=concurrency)
    raise typer.Exit(app.run(settings))


def beat() -> None:
    """Send the slow maintenance on its schedule. Start exactly one.

    Example: `sluice beat`
    """
    with _imported_for_good():
        from cli import configuration
        from workers import app
        from workers.settings import WorkerSettings

    raise typer.Exit(app.beat(configuration.read(WorkerSettings)))


def flower() -> None:
    """Serve Flower, Celery's own monitor, read-only.

    It listens on loopback; SLUICE_FLOWER_HOST moves it, and then SLUICE_FLOWER_BASIC_AUTH
    (`user:password`) must be set. SLUICE_FLOWER_PORT and SLUICE_FLOWER_PREFIX say where.

    Example: `SLUICE_FLOWER_BASIC_AUTH=ops:secret SLUICE_FLOWER_HOST=0.0.0.0 sluice flower`
    """
    from cli import configuration
    from cli import flower as monitor
    from shared import log

    settings = configuration.read(monitor.FlowerSettings)
    log.configure(settings, "flower")
    monitor.serve(settings)


def migrate() -> None:
    """Bring the database's tables to the newest revision; safe to repeat.

    Example: `SLUICE_DATABASE_URL=postgresql://sluice@db/sluice sluice migrate`
    """
    from cli import configuration
    from cli.database import as_failures
    from shared import revisions
    from shared.settings import StoreSettings

    settings = configuration.read(StoreSettings)
    with as_failures(settings):
        revisions.migrate(settings.database)
        current, _ = revisions.compare(settings.database)
    typer.echo(f"The database is at revision {current}.")


def model(port: ModelPort = 9001) -> None:
    """Serve the embedded model, SmolLM2-135M; `sluice up` does it for you.

    Example: `sluice model --port 9001`
    """
    from cli import model as embedded

    embedded.serve(port)


def valkey(port: ValkeyPort = 6379, home: Home = DEFAULT_HOME) -> None:
    """Serve the embedded Valkey; `sluice up` does it for you.

    Example: `sluice valkey --port 6379`
    """
    from cli import valkey as embedded

    embedded.serve(home / "valkey", port)
