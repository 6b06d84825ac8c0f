"""JSON Web Tokens: whose account a token names and what it may do, proven by its issuer's key.

The algorithm is a setting. What a token says of its own algorithm must agree, and what it says of
where its key is to be had is not read.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jwt
from jwt import ExpiredSignatureError, PyJWK, PyJWTError

from api.jwks import Jwks
from api.settings import ApiSettings
from shared.errors import InvalidApiKey
from shared.keys import COMPLETIONS

LONGEST: Final = 8 * 1024
"""Characters a token may have."""
LONGEST_WORD: Final = 200
"""Characters of what is wrong with a token that are told."""
LEEWAY: Final = 30
"""Seconds by which the issuer's clock and ours may differ."""
REMEMBERED_FOR: Final = 60
"""Seconds a verified token is not verified again."""
REMEMBERED: Final = 10_000
"""Verified tokens that are remembered."""
TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt", "application/jwt"})
_SHAPE: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token proves."""

    account_id: str
    scopes: frozenset[str]


def is_token(text: str) -> bool:
    """Whether it is a token by its looks; API keys have no dots."""
    return _SHAPE.fullmatch(text) is not None


class Memory:
    """Tokens that were verified a moment ago, by their digest: the newest of them, for a minute."""

    def __init__(self, most: int = REMEMBERED, *, now: Callable[[], float] = time.time) -> None:
        self._most = most
        self._now = now
        self._known: dict[bytes, tuple[Claims, float]] = {}

    def find(self, text: str) -> Claims | None:
        """What this very token proved, unless it has to be verified again."""
        claims, until = self._known.get(_digest(text), (None, 0.0))
        return claims if self._now() < until else None

    def keep(self, text: str, claims: Claims, *, expires_at: int) -> None:
        """Remember a token, at most until the Unix second at which it expires."""
        self._known.pop(_digest(text), None)
        if len(self._known) >= self._most:
            del self._known[next(iter(self._known))]  # the oldest
        self._known[_digest(text)] = claims, min(expires_at, self._now() + REMEMBERED_FOR)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Tokens:
    """Verifies the tokens of the one issuer that the settings name."""

    def __init__(self, settings: ApiSettings) -> None:
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        secret = settings.jwt_secret
        self._secret = secret.get_secret_value().encode() if secret else b""
        self._algorithm = "HS256" if self._secret else settings.jwt_algorithm
        url = settings.jwt_jwks_url
        self._keys = Jwks(url, settings.jwt_algorithm) if url else None
        self._memory = Memory()

    async def verify(self, text: str) -> Claims:
        """What the token proves.

        Raises `InvalidApiKey` (`token_expired` when its time is over), and `Unavailable` when the
        issuer's keys cannot be had.
        """
        known = self._memory.find(text)
        if known is not None:
            return known
        claims = await self._claims(text)
        proven = Claims(claims["sub"], _scopes(claims))
        self._memory.keep(text, proven, expires_at=int(claims["exp"]))
        return proven

    async def _claims(self, text: str) -> dict[str, Any]:
        if self._keys is None and not self._secret:
            raise InvalidApiKey("Send an API key; tokens are not accepted here.")
        if len(text) > LONGEST:
            raise InvalidApiKey(f"The token has more than {LONGEST} characters.")
        try:
            return jwt.decode(
                text,
                await self._key(jwt.get_unverified_header(text)),
                algorithms=[self._algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except ExpiredSignatureError:
            raise InvalidApiKey("The token has expired.", code="token_expired") from None
        except PyJWTError as error:
            said = ascii(str(error))[1:-1][:LONGEST_WORD].rstrip(".")  # it may quote the caller
            raise InvalidApiKey(f"The token is not valid: {said}.") from None

    async def _key(self, header: dict[str, Any]) -> bytes | PyJWK:
        if header.get("alg") != self._algorithm:
            raise InvalidApiKey(f"The token is not signed with {self._algorithm}.")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in TYPES:
            raise InvalidApiKey("The token is of another type: 'typ' should be JWT.")
        if self._keys is not None:
            return await self._keys.key(header.get("kid"))
        return self._secret


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """`scope`, words with spaces between; a token without it may submit."""
    said = claims.get("scope", COMPLETIONS)
    if not isinstance(said, str):
        raise InvalidApiKey("The token's 'scope' should be words with spaces between.")
    return frozenset(said.split())
