"""Upstreams that are not who they say they are, or do not speak TLS: nothing is told to them."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.catalog import UpstreamEntry
from shared.errors import UpstreamDisconnected
from tests.fakes.upstream import ScriptedUpstream
from tests.hearing import PATIENT, Heard, failure, hear, listen
from workers.upstreams.connections import Connections
from workers.upstreams.openai import OpenAIUpstream

REQUEST = {"messages": [{"role": "user", "content": "Hi"}]}
TOLD = "No connection to the upstream: TLS failed."


@pytest.fixture
def certified(tmp_path: Path) -> ssl.SSLContext:
    """How a server speaks that vouches for itself, and nobody else does."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = made.add_extension(here, critical=False)
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
    return context


@pytest.fixture
def signed_by_itself(certified: ssl.SSLContext) -> Iterator[str]:
    """The address of a server with a certificate that nobody vouches for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def greet() -> None:
            with suppress(OSError):  # the client goes away
                connection, _ = server.accept()
                with connection, certified.wrap_socket(connection, server_side=True) as talk:
                    talk.recv(1)

        greeting = threading.Thread(target=greet)
        greeting.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}/v1"
        greeting.join()


def told(base_url: str) -> str:
    """What is said of a call to this address."""
    entry = UpstreamEntry(dialect="openai", base_url=base_url)
    return failure(hear(OpenAIUpstream, entry, REQUEST, model="m"), UpstreamDisconnected).message


def test_a_certificate_that_nobody_vouches_for_is_refused(signed_by_itself: str) -> None:
    """In a sentence without the address; the key has not been sent."""
    assert told(signed_by_itself) == TOLD


def test_a_server_without_tls_is_refused(upstream: ScriptedUpstream) -> None:
    """When its address says https."""
    assert told(upstream.base_url.replace("http://", "https://")) == TOLD
    assert upstream.calls == []


def test_a_server_that_the_system_trusts_is_called(
    certified: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice over one connection, whose answers come in pieces while nobody listens."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    word = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
    last = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    said = word * 20_000 + last + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
    calls: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError), closing(writer):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                calls.append(await reader.readexactly(int(asked.rpartition(b": ")[2])))
                writer.write(head % len(said) + said)

    async def call() -> tuple[list[Heard], int]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certified)
        port = server.sockets[0].getsockname()[1]
        entry = UpstreamEntry(dialect="openai", base_url=f"https://127.0.0.1:{port}/v1")
        async with server:
            with Connections() as connections:
                upstream = OpenAIUpstream(connections, entry, api_key=None, timeouts=PATIENT)
                heard = [await listen(upstream, REQUEST, model="m") for _ in range(2)]
                return heard, connections.made

    heard, made = uvloop.run(call())

    assert [(one.error, len(one.text or "")) for one in heard] == [(None, 20_000)] * 2
    assert (made, len(calls)) == (1, 2)
