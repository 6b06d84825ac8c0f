"""A token issuer's public keys: fetched when they are needed, kept while the issuer is away."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import httpx
import orjson
import structlog
from jwt import PyJWK, PyJWTError

from shared.errors import InvalidApiKey, Unavailable

log = structlog.get_logger()

FRESH_FOR: Final = 600.0
"""Seconds after which the keys are fetched anew."""
COOLDOWN: Final = 30.0
"""Seconds between two fetches: tokens with invented keys must not become requests to the issuer."""
FIRST_COOLDOWN: Final = 1.0
"""The same while there are no keys at all."""
FETCH_WITHIN: Final = 5.0
"""Seconds a fetch may take."""
LARGEST: Final = 256 * 1024
"""Bytes a set of keys may have."""
KINDS: Final = {"RS256": "RSA", "ES256": "EC"}
PUBLIC: Final = ("kty", "n", "e", "crv", "x", "y")
"""The parts of a JWK that are of use here; nothing private, and no address of other keys."""


class Jwks:
    """The keys at one address that sign with one algorithm."""

    def __init__(
        self, url: str, algorithm: str, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url
        self._algorithm = algorithm
        self._now = now
        self._keys: dict[str | None, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None) -> PyJWK:
        """The key that a token names; without a name, the only one there is.

        Raises `InvalidApiKey` when the issuer has no such key, and `Unavailable` when it cannot
        be asked.
        """
        stale = self._now() >= self._fetched_at + FRESH_FOR
        if stale or self._find(kid) is None:
            await self._refresh()
        found = self._find(kid)
        if found is not None:
            return found
        if self._fetched_at < self._tried_at:
            raise Unavailable(
                "The keys of the token's issuer cannot be had now.",
                retry_after=timedelta(seconds=self._patience()),
            )
        raise InvalidApiKey("The token is signed with a key that its issuer does not have.")

    def _find(self, kid: str | None) -> PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _patience(self) -> float:
        return COOLDOWN if self._keys else FIRST_COOLDOWN

    async def _refresh(self) -> None:
        """Fetch the keys, unless that was tried a moment ago; all who wait share one fetch."""
        if self._fetching is None:
            if self._now() < self._tried_at + self._patience():
                return
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)  # who gives up waiting takes nobody along

    async def _fetch(self) -> None:
        tried_at = self._now()
        try:
            async with asyncio.timeout(FETCH_WITHIN):
                keys = _usable(await _get(self._url), self._algorithm)
            if not keys:
                raise ValueError(f"no key for {self._algorithm}")
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            log.warning("jwks_away", url=self._url, error=str(error) or type(error).__name__)
        else:
            self._keys, self._fetched_at = keys, tried_at
        finally:
            self._tried_at, self._fetching = tried_at, None


async def _get(url: str) -> bytes:
    """A small document. No redirects, and no proxy that the environment names."""
    async with (
        httpx.AsyncClient(timeout=FETCH_WITHIN, trust_env=False) as client,
        client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer,
    ):
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"status {answer.status_code}")
        body = b""
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > LARGEST:
                raise ValueError(f"more than {LARGEST} bytes")
        return body


def _usable(body: bytes, algorithm: str) -> dict[str | None, PyJWK]:
    """The keys that sign with this algorithm, by name. Raises `ValueError` when it is no set."""
    read = orjson.loads(body)
    listed = read.get("keys") if isinstance(read, dict) else None
    if not isinstance(listed, list):
        raise ValueError("not a set of keys")
    found: dict[str | None, PyJWK] = {}
    for each in listed:
        key = _public(each, algorithm) if isinstance(each, dict) else None
        if key is not None:
            found[each.get("kid")] = key
    return found


def _public(data: dict[str, Any], algorithm: str) -> PyJWK | None:
    """A key if it is for this algorithm, and strong enough; an issuer may have others."""
    named = data.get("kid")
    meant = data.get("use", "sig") == "sig" and data.get("alg", algorithm) == algorithm
    if not meant or data.get("kty") != KINDS[algorithm] or not isinstance(named, str | None):
        return None
    try:
        key = PyJWK({part: data[part] for part in PUBLIC if part in data}, algorithm)
        key.Algorithm.prepare_key(key.key)  # another curve is another algorithm
        weak = key.Algorithm.check_key_length(key.key)
    except PyJWTError:
        return None
    return None if weak else key
