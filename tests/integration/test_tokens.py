"""JSON Web Tokens against an issuer on loopback: proven, refused, and what its absence does."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr

from api.jwks import COOLDOWN, FRESH_FOR, LARGEST, Jwks
from api.settings import ApiSettings
from api.tokens import Claims, Memory, Tokens, is_token
from shared import accounts
from shared.errors import InvalidApiKey, Unavailable
from tests.factories import Sessions
from tests.fakes.issuer import AUDIENCE, NAME, Issuer, claims, ec_key, public, rsa_key

pytestmark = pytest.mark.anyio
ACCOUNT = "acct_" + "0" * 26
SECRET = "a secret of forty bytes, which is enough"
PEM = (
    rsa_key()
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """Somebody we trust."""
    with Issuer() as opened:
        yield opened


def accepting(**settings: Any) -> Tokens:
    """What verifies tokens under these settings."""
    return Tokens(ApiSettings(jwt_issuer=NAME, jwt_audience=AUDIENCE, **settings))


def by_secret(**changed: Any) -> str:
    """A token signed with the secret."""
    return jwt.encode(claims(ACCOUNT, **changed), SECRET, "HS256")


def forged(header: dict[str, Any], sign: Any = lambda signed: b"") -> str:
    """A token with any header and any signature."""
    parts = [json.dumps(part).encode() for part in (header, claims(ACCOUNT))]
    signed = b".".join(_base64url(part) for part in parts)
    return (signed + b"." + _base64url(sign(signed))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


async def refused(verifier: Tokens, token: str) -> InvalidApiKey:
    """Why the token is not accepted."""
    with pytest.raises(InvalidApiKey) as raised:
        await verifier.verify(token)
    return raised.value


async def test_a_token_signed_with_the_secret_proves_its_account() -> None:
    """Without a word on scopes it may submit; otherwise it may do what it says."""
    verifier = accepting(jwt_secret=SecretStr(SECRET))

    assert await verifier.verify(by_secret()) == Claims(ACCOUNT, frozenset({"completions"}))
    both = await verifier.verify(by_secret(scope="completions admin"))
    assert both.scopes == {"completions", "admin"}
    assert (await verifier.verify(by_secret(scope=""))).scopes == frozenset()


async def test_a_token_signed_with_an_issuers_key_proves_its_account(issuer: Issuer) -> None:
    """Named or, where there is only one, not; the keys are fetched once."""
    verifier = accepting(jwt_jwks_url=issuer.url)

    for kid in ("one", None):
        assert (await verifier.verify(issuer.token(ACCOUNT, kid=kid))).account_id == ACCOUNT
    assert issuer.fetches == 1


async def test_an_issuer_may_sign_with_elliptic_curves(issuer: Issuer) -> None:
    """The setting decides; of its other keys none is used."""
    issuer.publish(public(rsa_key(), kid="one"), public(ec_key(), kid="two"))
    token = jwt.encode(claims(ACCOUNT), ec_key(), "ES256", headers={"kid": "two"})

    verifier = accepting(jwt_jwks_url=issuer.url, jwt_algorithm="ES256")
    assert (await verifier.verify(token)).account_id == ACCOUNT
    assert "not signed with ES256" in (await refused(verifier, issuer.token(ACCOUNT))).message
    await refused(accepting(jwt_jwks_url=issuer.url), token)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"iss": "https://evil.example"}, "issuer"),
        ({"aud": "another"}, "Audience"),
        ({"iss": None}, '"iss"'),
        ({"aud": None}, '"aud"'),
        ({"sub": None}, '"sub"'),
        ({"exp": None}, '"exp"'),
        ({"exp": "soon"}, "exp"),
        ({"sub": 7}, "Subject"),
        ({"nbf": 4_102_444_800}, "not yet valid"),
        ({"scope": ["admin"]}, "scope"),
    ],
    ids=str,
)
async def test_a_token_that_says_something_else_is_refused(
    changed: dict[str, Any], said: str
) -> None:
    """401, with what is wrong."""
    error = await refused(accepting(jwt_secret=SecretStr(SECRET)), by_secret(**changed))

    assert said in error.message
    assert (error.status, error.code) == (401, "invalid_api_key")


async def test_an_expired_token_says_so() -> None:
    """Two clocks may differ by half a minute, not by more."""
    verifier = accepting(jwt_secret=SecretStr(SECRET))
    now = int(time.time())

    error = await refused(verifier, by_secret(exp=now - 60))
    assert (error.status, error.code) == (401, "token_expired")
    assert await verifier.verify(by_secret(exp=now - 10, nbf=now + 10))


async def test_the_algorithm_is_ours_to_say(issuer: Issuer) -> None:
    """Not `none`, and no public key taken for a secret, whatever the header says."""
    verifier = accepting(jwt_jwks_url=issuer.url)

    def with_public_key(signed: bytes) -> bytes:
        return hmac.digest(PEM, signed, hashlib.sha256)

    for token in (
        forged({"alg": "none", "kid": "one"}),
        forged({"alg": "None"}),
        forged({"kid": "one"}),
        forged({"alg": "HS256", "kid": "one"}, with_public_key),
        forged({"alg": "RS256", "kid": "one"}, with_public_key),
        forged({"alg": "RS256", "kid": "one"}),
        forged({"alg": "RS256", "kid": 1}),
    ):
        assert is_token(token)
        await refused(verifier, token)
    await refused(accepting(jwt_secret=SecretStr(SECRET)), issuer.token(ACCOUNT))


@pytest.mark.parametrize(
    "header", [{"typ": "secevent+jwt"}, {"typ": 7}, {"crit": ["exp"], "exp": 1}], ids=str
)
async def test_what_is_signed_for_another_purpose_is_no_token(
    issuer: Issuer, header: dict[str, Any]
) -> None:
    """An issuer signs more than tokens, and may ask for more than we understand."""
    signed = jwt.encode(claims(ACCOUNT), rsa_key(), "RS256", headers={"kid": "one", **header})

    await refused(accepting(jwt_jwks_url=issuer.url), signed)


async def test_a_token_cannot_say_where_its_key_is(issuer: Issuer) -> None:
    """Neither an address in its header nor a key in it is looked at."""
    with Issuer() as evil:
        evil.publish(public(rsa_key(1), kid="one"))
        for header in (
            {"jku": evil.url, "kid": "one"},
            {"x5u": evil.url, "kid": "one"},
            {"jwk": public(rsa_key(1)), "kid": "one"},
        ):
            token = jwt.encode(claims(ACCOUNT), rsa_key(1), "RS256", headers=header)
            await refused(accepting(jwt_jwks_url=issuer.url), token)

        assert evil.fetches == 0


async def test_a_token_is_not_one_without_a_setting() -> None:
    """It is told to send a key."""
    assert "not accepted" in (await refused(Tokens(ApiSettings()), by_secret())).message


def test_a_verified_token_is_remembered_for_a_minute() -> None:
    """Or until it expires; of many the newest."""
    now = Clock()
    memory = Memory(2, now=now)
    proven = Claims(ACCOUNT, frozenset())
    memory.keep("oldest", proven, expires_at=9_999)
    memory.keep("short", proven, expires_at=1_010)
    memory.keep("long", proven, expires_at=9_999)

    assert memory.find("oldest") is None
    assert memory.find("short") == memory.find("long") == proven
    now.seconds += 10
    assert memory.find("short") is None
    now.seconds += 49
    assert memory.find("long") == proven
    now.seconds += 1
    assert memory.find("long") is None


async def test_another_token_of_the_same_account_is_another_one(issuer: Issuer) -> None:
    """Nothing is known of it because the first was verified."""
    verifier = accepting(jwt_jwks_url=issuer.url)
    token = issuer.token(ACCOUNT)
    assert await verifier.verify(token) == await verifier.verify(token)

    await refused(verifier, token[:-8] + "AAAAAAAA")


async def test_an_unknown_name_has_the_keys_fetched_again_but_not_at_once(issuer: Issuer) -> None:
    """An issuer may change its keys; invented names must not become requests to it."""
    now = Clock()
    keys = Jwks(issuer.url, "RS256", now=now)
    assert await keys.key("one")
    issuer.publish(public(rsa_key(), kid="one"), public(rsa_key(1), kid="two"))

    for _ in range(3):
        with pytest.raises(InvalidApiKey):
            await keys.key("two")
    assert issuer.fetches == 1
    now.seconds += COOLDOWN
    assert await keys.key("two")
    assert issuer.fetches == 2


async def test_keys_are_fetched_anew_when_they_are_old(issuer: Issuer) -> None:
    """Those that the issuer has withdrawn are good no more."""
    now = Clock()
    keys = Jwks(issuer.url, "RS256", now=now)
    assert await keys.key("one")
    issuer.publish(public(rsa_key(1), kid="two"))
    now.seconds += FRESH_FOR

    with pytest.raises(InvalidApiKey):
        await keys.key("one")
    assert await keys.key("two")


@pytest.mark.parametrize(
    "status, body",
    [
        (500, b"{}"),
        (302, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"keys": []}'),
        (200, b'{"keys": [{"kty": "RSA", "n": 7}, 7, {"kty": "oct", "k": "c2VjcmV0"}]}'),
        (200, json.dumps({"keys": [public(rsa_key(1), kid="new")], "x": "y" * LARGEST}).encode()),
    ],
    ids=["500", "302", "html", "array", "empty", "unusable", "too large"],
)
async def test_the_last_good_keys_are_kept(issuer: Issuer, status: int, body: bytes) -> None:
    """An issuer that is away, or sends rubbish, locks nobody out; whom it knows is not asked."""
    now = Clock()
    keys = Jwks(issuer.url, "RS256", now=now)
    assert await keys.key("one")
    issuer.status, issuer.body = status, body
    now.seconds += FRESH_FOR

    assert await keys.key("one")
    assert await keys.key("one")
    assert issuer.fetches == 2
    with pytest.raises(Unavailable) as raised:
        await keys.key("new")
    assert raised.value.retry_after is not None


async def test_without_keys_nobody_can_tell(issuer: Issuer) -> None:
    """503 until the issuer answers; never 401."""
    now = Clock()
    keys = Jwks(issuer.url, "RS256", now=now)
    issuer.status = 503

    for _ in range(3):
        with pytest.raises(Unavailable) as raised:
            await keys.key("one")
        assert raised.value.status == 503
    assert issuer.fetches == 1
    issuer.status = 200
    now.seconds += 1
    assert await keys.key("one")


async def test_many_tokens_at_once_are_one_fetch(issuer: Issuer) -> None:
    """And one who stops waiting leaves it to the others."""
    keys = Jwks(issuer.url, "RS256")
    waiting = [asyncio.create_task(keys.key("one")) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    found = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(found[0], asyncio.CancelledError)
    assert not [each for each in found[1:] if isinstance(each, BaseException)]
    assert issuer.fetches == 1


@pytest.mark.parametrize(
    "jwk",
    [
        public(rsa_key(), kid="one", use="enc"),
        public(rsa_key(), kid="one", alg="RS512"),
        public(rsa_key(2, bits=1024), kid="one"),
        {**public(ec_key(), kid="one"), "kty": "RSA"},
    ],
    ids=["for encryption", "another algorithm", "weak", "nonsense"],
)
async def test_keys_that_are_not_meant_for_this_are_not_used(
    issuer: Issuer, jwk: dict[str, Any]
) -> None:
    """An issuer publishes keys for more than one purpose."""
    issuer.publish(jwk, public(rsa_key(1), kid="other"))

    with pytest.raises(InvalidApiKey):
        await Jwks(issuer.url, "RS256").key("one")


def test_a_token_names_an_account_that_is_there(sessions: Sessions) -> None:
    """And that is not disabled; whatever else its subject is, it is a wrong one."""
    with sessions() as session:
        account = accounts.ensure(session, "ours")
        assert accounts.named_by_token(session, account.id) is account
        for wrong in (ACCOUNT, "ours", "", "\0", "acct_\0" + "0" * 25, "\ud800", account.id[5:]):
            with pytest.raises(InvalidApiKey, match="names no account"):
                accounts.named_by_token(session, wrong)
        account.disabled_at = 1
        with pytest.raises(InvalidApiKey, match="disabled"):
            accounts.named_by_token(session, account.id)
