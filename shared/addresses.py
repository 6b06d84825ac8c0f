"""Where a webhook may go: public addresses by https, and what the operator allows besides."""

import socket
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST: Final = 2_048
"""Characters of a URL."""
PORTS: Final = (443, 8443)
UNICAST: Final = ip_network("2000::/3")
"""All of IPv6 that is anybody's; mapped, translated (NAT64) and local addresses are elsewhere."""
NOT_PUBLIC: Final = (
    ip_network("100.64.0.0/10"),  # a carrier's own, and a cloud's metadata
    ip_network("168.63.129.16/32"),  # a public address that is a cloud's own host
    ip_network("192.0.0.0/24"),
    ip_network("192.88.99.0/24"),  # 6to4 leads to any IPv4 address
    ip_network("2002::/16"),
    ip_network("2001::/23"),
)
"""What Python calls global, or has called global, and is not."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Receivers that may be private, speak http and listen on any port."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Allowed":
        """Names, addresses and networks with commas between. Raises `ValueError`."""
        names, networks = set(), []
        for word in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ip_network(word))
            except ValueError:
                if "/" in word or ":" in word:
                    raise ValueError(f"{word!r} is neither a host nor a network") from None
                names.add(word)
        return cls(frozenset(names), tuple(networks))

    def names_host(self, host: str) -> bool:
        """Whether the host itself is allowed, by its name or as an address."""
        address = _literal(host)
        return host in self.names or (address is not None and self._covers(address))

    def reaches(self, address: str) -> bool:
        """Whether an address may be connected to for a host that is not allowed by name."""
        parsed = ip_address(address)
        return _is_public(parsed) or self._covers(parsed)

    def _covers(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def check_url(url: str, allowed: Allowed) -> None:
    """Raise `ValueError` with a sentence unless events may be sent there, as far as a URL tells.

    What its name resolves to is asked at each sending.
    """
    scheme, host, port = split(url)
    if not allowed.names_host(host):
        _check_public(scheme, host, port)


def split(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a web address. Raises `ValueError` with a sentence."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:  # a bracket or a port that is none
        raise ValueError("should be a URL") from None
    plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if len(url) > LONGEST or not plain or not host or port == 0:
        raise ValueError(f"should be a URL of at most {LONGEST:,} characters")
    if "@" in parts.netloc:
        raise ValueError("should not hold credentials")
    if parts.scheme not in ("http", "https"):
        raise ValueError("should begin with https://")
    return parts.scheme, host, port


def _check_public(scheme: str, host: str, port: int | None) -> None:
    if scheme != "https":
        raise ValueError("should begin with https://")
    if port not in (None, *PORTS):
        raise ValueError("should have the port 443 or 8443")
    address = _literal(host)
    local = host == "localhost" or host.endswith(".localhost")
    if local or (address is not None and not _is_public(address)):
        raise ValueError("should be a public address")


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    known = address.is_global and not address.is_multicast
    return known and not any(address in network for network in NOT_PUBLIC)


def _literal(host: str) -> Address | None:
    """The address that a host is, in any of the spellings that resolvers understand."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))  # as in `127.1` or `0x7f000001`
    except OSError:
        return None
