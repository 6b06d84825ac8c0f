"""One POST of an event to its receiver, who may be anybody and mean us harm.

Every address is looked up and checked here, at each sending, and it is the checked address that is
connected to: a name that resolves to another one a moment later leads nowhere.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from shared import signatures
from shared.addresses import Allowed, check_url
from shared.deliveries import Parcel

WITHIN: Final = aiohttp.ClientTimeout(total=15, sock_connect=5)
READ_AT_MOST: Final = 64 * 1024
"""Bytes of an answer; nobody is shown them."""
LONGEST_WAIT: Final = timedelta(hours=24)
"""What a receiver's `Retry-After` may ask for."""
AGENT: Final = "Sluice (webhooks)"


class Refused(OSError):
    """An address that we do not connect to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int | None = None
    """The HTTP status; None: there was no answer."""
    error: str | None = None
    refused: bool = False
    """We did not send: asking again would not help."""
    retry_after: timedelta = timedelta()


class PublicResolver(AbstractResolver):
    """Names to addresses; one address that is not public refuses the name.

    A lookup cannot be stopped: one that hangs has its thread for longer than its sending lasts.
    """

    def __init__(self, allowed: Allowed, *, threads: int) -> None:
        self._allowed = allowed
        # Not the loop's own threads: names that resolve slowly would hold up every upstream.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._under_way: dict[str, asyncio.Future[list[Any]]] = {}
        """Lookups, by host: a name has one thread, however many events are sent there."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host. Raises `Refused`, or what the lookup raises."""
        lookup = self._under_way.get(host) or self._begin(host, port, family)
        found = await asyncio.shield(lookup)
        by_name = self._allowed.names_host(host.rstrip("."))
        if not by_name and not all(self._allowed.reaches(address[0]) for *_, address in found):
            raise Refused("It resolves to an address that is not public.")
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    def under_way(self, url: str) -> "asyncio.Future[list[Any]] | None":
        """The lookup of a URL's host that has not ended yet, though its sending may have."""
        try:
            host = URL(url).raw_host
        except ValueError:
            return None
        return self._under_way.get(host or "")

    def _begin(self, host: str, port: int, family: int) -> "asyncio.Future[list[Any]]":
        loop = asyncio.get_running_loop()
        lookup = loop.run_in_executor(self._threads, self.look_up, host, port, family)
        self._under_way[host] = lookup
        lookup.add_done_callback(lambda _: self._ended(host))
        return lookup

    def _ended(self, host: str) -> None:
        lookup = self._under_way.pop(host)
        if not lookup.cancelled():
            lookup.exception()  # so that nobody misses it, when its sending is over

    def look_up(self, host: str, port: int, family: int) -> list[Any]:
        """What the system's resolver says."""
        return socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)

    async def close(self) -> None:
        """Let go of the threads."""
        for lookup in list(self._under_way.values()):
            lookup.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def open_session(
    resolver: PublicResolver, *, limit: int, within: aiohttp.ClientTimeout = WITHIN
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that keeps nothing: no connection, no name, no cookie, and knows no proxy."""
    connector = aiohttp.TCPConnector(
        resolver=resolver, use_dns_cache=False, force_close=True, limit=limit
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=within,
        auto_decompress=False,
        trust_env=False,
    ) as session:
        yield session
    await resolver.close()


async def post(session: aiohttp.ClientSession, parcel: Parcel, allowed: Allowed) -> Answer:
    """Send a delivery once; every way to fail is an answer."""
    try:
        check_url(parcel.url, allowed)
    except ValueError as error:
        return Answer(error=f"Not sent: the URL {error}.", refused=True)
    signed = signatures.headers(parcel.event_id, int(time.time()), parcel.body, parcel.signers)
    try:
        async with session.post(
            URL(parcel.url),
            data=parcel.body,
            headers={**signed, "content-type": "application/json", "user-agent": AGENT},
            allow_redirects=False,
        ) as response:
            await response.content.read(READ_AT_MOST)
            return _heard(response)
    except TimeoutError:
        return Answer(error="No answer in time.")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        refused = isinstance(getattr(error, "os_error", error), Refused)
        return Answer(error=_told(error, refused), refused=refused)


def _heard(response: aiohttp.ClientResponse) -> Answer:
    status, error = response.status, None
    if 300 <= status < 400:
        error = "It redirects, which is not followed."
    elif not 200 <= status < 300:
        error = f"It answered {status}."
    return Answer(status, error, retry_after=retry_after(response.headers.get("retry-after")))


def _told(error: Exception, refused: bool) -> str:
    """A sentence for the receiver's owner."""
    if refused:
        return "Not sent: it resolves to an address that is not public."
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "Its name does not resolve."
    if isinstance(error, aiohttp.ClientSSLError):
        return "Its certificate is not valid."
    if isinstance(error, aiohttp.ClientConnectorError):
        return "It takes no connections."
    return "It hung up before it had answered."


def retry_after(value: str | None) -> timedelta:
    """What a `Retry-After` asks for, in seconds or as a date; nothing when it is neither."""
    if value is None:
        return timedelta()
    try:
        asked = timedelta(seconds=min(int(value), LONGEST_WAIT.total_seconds()))
    except (ValueError, OverflowError):
        try:
            until = parsedate_to_datetime(value)
            asked = until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)
        except (ValueError, OverflowError):
            return timedelta()
    return min(max(asked, timedelta()), LONGEST_WAIT)
