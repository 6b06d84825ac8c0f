"""Upstreams that are not who they say they are, or do not speak TLS: nothing is told to them."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.catalog import UpstreamEntry
from shared.errors import UpstreamDisconnected
from tests.fakes.upstream import ScriptedUpstream
from tests.hearing import failure, hear
from workers.upstreams.openai import OpenAIUpstream

TOLD = "No connection to the upstream: TLS failed."


@pytest.fixture
def signed_by_itself(tmp_path: Path) -> Iterator[str]:
    """The address of a server with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    (tmp_path / "cert.pem").write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def greet() -> None:
            with suppress(OSError):  # the client goes away
                connection, _ = server.accept()
                with connection, context.wrap_socket(connection, server_side=True) as talk:
                    talk.recv(1)

        greeting = threading.Thread(target=greet)
        greeting.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}/v1"
        greeting.join()


def told(base_url: str) -> str:
    """What is said of a call to this address."""
    entry = UpstreamEntry(dialect="openai", base_url=base_url)
    request = {"messages": [{"role": "user", "content": "Hi"}]}
    return failure(hear(OpenAIUpstream, entry, request, model="m"), UpstreamDisconnected).message


def test_a_certificate_that_nobody_vouches_for_is_refused(signed_by_itself: str) -> None:
    """In a sentence without the address; the key has not been sent."""
    assert told(signed_by_itself) == TOLD


def test_a_server_without_tls_is_refused(upstream: ScriptedUpstream) -> None:
    """When its address says https."""
    assert told(upstream.base_url.replace("http://", "https://")) == TOLD
    assert upstream.calls == []
