"""An issuer of tokens on loopback: signs them, and serves the public halves of its keys."""

import json
import threading
import time
from collections.abc import Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

NAME = "https://issuer.example"
AUDIENCE = "sluice"


@cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same key for the same number."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    """The same key for the same number."""
    return ec.generate_private_key(ec.SECP256R1())


def claims(account_id: str, **changed: Any) -> dict[str, Any]:
    """What a good token says; a claim that is None is left out."""
    now = int(time.time())
    good = {"iss": NAME, "aud": AUDIENCE, "sub": account_id, "iat": now, "exp": now + 300}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def public(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, **more: Any) -> dict[str, Any]:
    """The JWK of a key's public half."""
    if isinstance(key, rsa.RSAPrivateKey):
        return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), **more}
    return {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), **more}


class Issuer:
    """Serves its keys with `status` 200, or whatever else is set."""

    def __init__(self) -> None:
        self.fetches = 0
        self.status = 200
        self.body = b"{}"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """Where its keys are."""
        return f"http://127.0.0.1:{self._server.server_port}/keys"

    def publish(self, *keys: Mapping[str, Any]) -> None:
        """Serve these keys from now on."""
        self.body = json.dumps({"keys": keys}).encode()

    def token(self, account_id: str, *, kid: str | None = "one", **changed: Any) -> str:
        """A token signed with the RSA key number 0."""
        headers = {"kid": kid} if kid else None
        return jwt.encode(claims(account_id, **changed), rsa_key(), "RS256", headers=headers)

    def __enter__(self) -> Self:
        self.publish(public(rsa_key(), kid="one"))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetches += 1
            self.send_response(issuer.status)
            self.send_header("content-length", str(len(issuer.body)))
            self.end_headers()
            self.wfile.write(issuer.body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing."""

    return Handler
