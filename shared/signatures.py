"""Signatures of webhooks, as Standard Webhooks 1.0 has them: `v1`, HMAC-SHA256."""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Final

PREFIX: Final = "whsec_"
SHORTEST: Final = 24
"""Bytes of a secret, as is the next."""
LONGEST: Final = 64
NEW: Final = 32


def new_secret() -> str:
    """A new secret, as both sides keep it: `whsec_` and base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(NEW)).decode()


def key_of(secret: str) -> bytes:
    """The key in a secret. Raises `ValueError` with a sentence when it is none."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not SHORTEST <= len(key) <= LONGEST:
        raise ValueError(f"should be 'whsec_' and the base64 of {SHORTEST} to {LONGEST} bytes")
    return key


def headers(event_id: str, sent_at: int, body: bytes, signers: Iterable[str]) -> dict[str, str]:
    """What a sending carries; `sent_at` is Unix seconds, each secret of `signers` signs."""
    signed = f"{event_id}.{sent_at}.".encode() + body
    marks = [
        "v1," + base64.b64encode(hmac.digest(key_of(secret), signed, hashlib.sha256)).decode()
        for secret in signers
    ]
    named = {"webhook-id": event_id, "webhook-timestamp": str(sent_at)}
    return {**named, "webhook-signature": " ".join(marks)} if marks else named
