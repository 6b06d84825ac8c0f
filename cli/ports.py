"""TCP ports for the processes of `sluice up`."""

import ipaddress
import socket

from cli.failure import USAGE, Failure

LOOPBACK = "127.0.0.1"


def free() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_everywhere(host: str) -> bool:
    """Whether a server on `host` listens on all addresses, which is none to connect to."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def claim(variable: str, host: str, port: int) -> int:
    """`port`, if a server could listen on it now. Raises `Failure` that names the variable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Failure(
                f"Port {port} on {host} cannot be used: {error.strerror or error}. "
                f"Set {variable} to another one.",
                code=USAGE,
            ) from None
        claimed: int = probe.getsockname()[1]
        return claimed
