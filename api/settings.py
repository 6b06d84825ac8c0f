"""What the API process reads from the environment. It never sees an upstream's key."""

from datetime import timedelta

from pydantic import Field

from shared.settings import Duration, StoreSettings


class ApiSettings(StoreSettings):
    """Settings of `sluice api`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    metrics: bool = True
    """Serve `/metrics`."""
    body_limit: int = 8 * 1024 * 1024
    """Bytes a request body may have."""
    hold_limit: Duration = timedelta(seconds=590)
    """The longest a plain request is held open; below the SDKs' own 600 s."""
    heartbeat: Duration = timedelta(seconds=10)
    """How long a stream may be silent before we send a comment to keep proxies awake."""
    disconnect_grace: Duration = timedelta(seconds=30)
    """How long a job whose last reader left waits for one to come back before it is cancelled."""
    shutdown_grace: Duration = timedelta(seconds=10)
    """How long open streams may go on after SIGTERM."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Tries a job gets, unless it says otherwise."""
    hint_window: int = Field(default=5_000, ge=1)
    """Hints a lane's queue may hold; what is beyond waits in the database."""
