"""What a worker process reads from the environment: lease, timeouts, concurrency.

Upstream keys are read by name when the catalogue is opened (`api_key_env`), here and nowhere else.
"""

from datetime import timedelta

from pydantic import Field, ValidationInfo, field_validator

from shared.addresses import Allowed
from shared.settings import Duration, StoreSettings

MOST_SECONDS = 30 * 24 * 3600
"""Between two tries of a delivery."""


class WorkerSettings(StoreSettings):
    """Settings of `sluice worker`."""

    worker_concurrency: int = Field(default=500, ge=1)
    """Jobs in flight in one process."""
    lease_ttl: Duration = timedelta(seconds=60)
    """How long a silent worker keeps its jobs."""
    lease_beat: Duration = timedelta(seconds=10)
    lease_margin: Duration = Field(default=timedelta(seconds=15), validate_default=True)
    """A worker stops trusting its own lease this long before the others do."""
    drain: Duration = timedelta(seconds=25)
    """After SIGTERM, how long running jobs may go on before they are handed back."""
    connect_timeout: Duration = timedelta(seconds=10)
    first_byte_timeout: Duration = timedelta(seconds=60)
    silence_timeout: Duration = timedelta(seconds=60)
    attempt_timeout: Duration = timedelta(minutes=30)
    hint_ttl: Duration = timedelta(seconds=20)
    """A hint older than this is sent again, unless it is still in the queue."""
    hint_window: int = Field(default=5_000, ge=1)
    """Hints a lane's queue may hold; what is beyond waits in the database."""
    publish_buffer: int = 64 * 1024 * 1024
    """Bytes of deltas that may wait for Redis before upstream reads pause."""
    retention: Duration = timedelta(days=30)
    """How long finished jobs are kept."""
    content_retention: Duration | None = None
    """How long what was asked and said is kept; unset: as long as the job."""
    webhook_allow: str = ""
    """Hosts and networks that webhooks may reach though they are private, or speak plain http."""
    webhook_schedule: str = "5,300,1800,7200,18000,36000,50400,72000,86400"
    """Seconds between two tries of a delivery; after the last of them it has failed."""

    @property
    def allowed(self) -> Allowed:
        """Where webhooks may go besides public addresses."""
        return Allowed.parse(self.webhook_allow)

    @property
    def schedule(self) -> list[float]:
        """Seconds between two tries of a delivery."""
        return [float(word) for word in self.webhook_schedule.split(",")]

    @field_validator("webhook_allow")
    @classmethod
    def _names_hosts(cls, text: str) -> str:
        Allowed.parse(text)
        return text

    @field_validator("webhook_schedule")
    @classmethod
    def _is_a_list_of_seconds(cls, text: str) -> str:
        try:
            good = all(0 <= float(word) <= MOST_SECONDS for word in text.split(","))
        except ValueError:
            good = False
        if not good:
            raise ValueError("should be seconds with commas between, as in '5,300'")
        return text

    @field_validator("lease_margin")
    @classmethod
    def _leaves_room_for_a_late_beat(cls, margin: timedelta, others: ValidationInfo) -> timedelta:
        if (ttl := others.data.get("lease_ttl")) is not None:
            if margin >= ttl:
                raise ValueError("not shorter than SLUICE_LEASE_TTL")
            if (beat := others.data.get("lease_beat")) is not None and 2 * beat >= ttl - margin:
                raise ValueError(
                    "two beats (SLUICE_LEASE_BEAT) must fit into SLUICE_LEASE_TTL less this margin,"
                    " or a late one would cost the lease"
                )
        return margin

    @field_validator("content_retention")
    @classmethod
    def _no_longer_than_the_job(
        cls, span: timedelta | None, others: ValidationInfo
    ) -> timedelta | None:
        kept_for = others.data.get("retention")
        if span is not None and kept_for is not None and span > kept_for:
            raise ValueError("longer than SLUICE_RETENTION, after which the job itself is deleted")
        return span
