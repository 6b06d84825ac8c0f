"""What the API process reads from the environment. It never sees an upstream's key."""

from datetime import timedelta
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from shared.addresses import Allowed
from shared.settings import Duration, StoreSettings

SHORTEST_SECRET: Final = 32
"""Bytes: as many as HS256 makes of it."""


class ApiSettings(StoreSettings):
    """Settings of `sluice api`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    metrics: bool = True
    """Serve `/metrics`."""
    body_limit: int = 8 * 1024 * 1024
    """Bytes a request body may have."""
    file_limit: int = 200 * 1024 * 1024
    """Bytes an uploaded file may have."""
    hold_limit: Duration = timedelta(seconds=590)
    """The longest a plain request is held open; below the SDKs' own 600 s."""
    heartbeat: Duration = timedelta(seconds=10)
    """How long a stream may be silent before we send a comment to keep proxies awake."""
    unread_timeout: Duration = Field(default=timedelta(seconds=30), ge=timedelta(seconds=1))
    """How long a stream's reader may take no bytes before it has left; it can come back."""
    disconnect_grace: Duration = timedelta(seconds=30)
    """How long a job whose last reader left waits for one to come back before it is cancelled."""
    shutdown_grace: Duration = timedelta(seconds=10)
    """How long open streams may go on after SIGTERM."""
    hint_window: int = Field(default=5_000, ge=1)
    """Hints a lane's queue may hold; what is beyond waits in the database."""
    queue_limit: int = Field(default=1_000_000, ge=0)
    """Jobs that may wait; past that we accept no more. 0: any number."""
    webhook_allow: str = ""
    """Hosts and networks that webhooks may reach though they are private, or speak plain http."""
    jwt_secret: SecretStr | None = None
    """Accepts tokens signed with HS256 and this secret, of 32 bytes or more."""
    jwt_jwks_url: str | None = None
    """Accepts tokens signed with the keys at this address instead; https unless loopback."""
    jwt_algorithm: Literal["RS256", "ES256"] = "RS256"
    """How the keys at that address sign."""
    jwt_issuer: str | None = Field(default=None, validate_default=True)
    """The `iss` a token must have."""
    jwt_audience: str | None = Field(default=None, validate_default=True)
    """The `aud` a token must have, beside others perhaps."""

    @property
    def allowed(self) -> Allowed:
        """Where webhooks may go besides public addresses."""
        return Allowed.parse(self.webhook_allow)

    @field_validator("webhook_allow")
    @classmethod
    def _names_hosts(cls, text: str) -> str:
        Allowed.parse(text)
        return text

    @field_validator("jwt_secret")
    @classmethod
    def _is_long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) < SHORTEST_SECRET:
            raise ValueError(f"should have {SHORTEST_SECRET} bytes or more")
        return secret

    @field_validator("jwt_jwks_url")
    @classmethod
    def _can_be_trusted(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None:
            return None
        if info.data.get("jwt_secret") is not None:
            raise ValueError("an issuer has either this or SLUICE_JWT_SECRET, never both")
        parts = urlsplit(url)
        secure = parts.scheme == "https" or (parts.scheme == "http" and _loopback(parts.hostname))
        if not secure or not parts.hostname:
            raise ValueError("should begin with https:// (http:// only on loopback)")
        return url

    @field_validator("jwt_issuer", "jwt_audience")
    @classmethod
    def _is_there_with_tokens(cls, name: str | None, info: ValidationInfo) -> str | None:
        if not name and (info.data.get("jwt_secret") or info.data.get("jwt_jwks_url")):
            raise ValueError("is needed to accept tokens")
        return name


def _loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False
