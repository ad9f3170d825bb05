"""Where a server listens. Imports no torch."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Listening:
    """Where a server listens, what its model is called, and who may ask.

    Attributes:
        host: The address.
        port: The port; 0: any free one.
        key: What clients must send; None: nothing.
        name: The model's id.
    """

    host: str
    port: int
    key: str | None
    name: str


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, as a server binds it.

    Raises:
        OSError: No such address on this machine, or the port is in use.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def address_of(listening: socket.socket) -> str:
    """`http://host:port` of a bound socket."""
    host, port = listening.getsockname()[:2]
    return http_address(host, port)


def http_address(host: str, port: int | str) -> str:
    """`http://host:port`, an IPv6 address in brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
