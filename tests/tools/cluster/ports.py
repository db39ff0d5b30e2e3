"""Free ports, so that several clusters and test processes run side by side."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path

_CHANCE = random.SystemRandom()
"""Tests seed Python's own generator, which would give each process the same ports."""
_given: set[int] = set()


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
    except OSError:
        listener.close()
        raise
    return listener


def _any() -> socket.socket:
    """Return a free port below NodePorts and those of outgoing connections.

    It must still be free later: each worker of pytest-xdist has a range of its own, and no port is given out twice.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")) % 10
    while True:
        port = 20_000 + 1_000 * worker + _CHANCE.randrange(1_000)
        if port not in _given:
            _given.add(port)
            try:
                return _bound(port)
            except OSError:
                continue


def free_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Return a free port for each name: the wanted one where it is free and not 0, else any."""
    taken = []
    try:
        for port in wanted.values():
            try:
                taken.append(_bound(port) if port else _any())
            except OSError:
                taken.append(_any())
        return dict(zip(wanted, (listener.getsockname()[1] for listener in taken), strict=True))
    finally:
        for listener in taken:
            listener.close()


def free_port() -> int:
    """Return any port that is free; that it and its neighbours stay so is likely."""
    return free_ports({"it": 0})["it"]


def free_pair() -> int:
    """Return a port that is free as the next one is."""
    while True:
        port = free_port()
        try:
            _bound(port + 1).close()
        except OSError:
            continue
        return port


def kept_ports(file: Path, wanted: Mapping[str, int]) -> dict[str, int]:
    """Return the ports written in `file`, which free ports fill the first time."""
    if file.exists():
        kept: dict[str, int] = json.loads(file.read_text())
        if kept.keys() == wanted.keys():
            return kept
    ports = free_ports(wanted)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(ports))
    return ports


def is_listening(host: str, port: int) -> bool:
    """Tell whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
