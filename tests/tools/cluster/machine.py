"""Facts about this machine that the node needs."""

from __future__ import annotations

import socket

# Only to ask the routing table: nothing is sent.
SOMEWHERE = ("192.0.2.1", 9)


class NoAddress(Exception):
    """The machine has no address that pods could reach it by."""


def node_address() -> str:
    """Return the address that this machine has on its default route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(SOMEWHERE)
        except OSError as error:
            raise NoAddress("this machine has no IPv4 route, so pods could not reach its servers") from error
        address: str = probe.getsockname()[0]
    return address
