"""What a worker process reads from the environment: lease, timeouts, concurrency.

Upstream keys are read by name when the catalogue is opened (`api_key_env`), here and nowhere else.
"""

from datetime import timedelta

from pydantic import Field

from shared.settings import Duration, StoreSettings


class WorkerSettings(StoreSettings):
    """Settings of `sluice worker`."""

    worker_concurrency: int = Field(default=500, ge=1)
    """Jobs in flight in one process."""
    lease_ttl: Duration = timedelta(seconds=30)
    """How long a silent worker keeps its jobs."""
    lease_beat: Duration = timedelta(seconds=5)
    lease_margin: Duration = timedelta(seconds=8)
    """A worker stops trusting its own lease this long before the others do."""
    drain: Duration = timedelta(seconds=25)
    """After SIGTERM, how long running jobs may go on before they are handed back."""
    connect_timeout: Duration = timedelta(seconds=10)
    first_byte_timeout: Duration = timedelta(seconds=60)
    silence_timeout: Duration = timedelta(seconds=60)
    attempt_timeout: Duration = timedelta(minutes=30)
    hint_ttl: Duration = timedelta(seconds=20)
    """A hint older than this is presumed lost and sent again."""
    hint_window: int = Field(default=5_000, ge=1)
    """Hints a lane's queue may hold; what is beyond waits in the database."""
    publish_buffer: int = 64 * 1024 * 1024
    """Bytes of deltas that may wait for Redis before upstream reads pause."""
    retention: Duration = timedelta(days=30)
    """How long finished jobs are kept."""
