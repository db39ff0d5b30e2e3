"""Lines of JSON between the first process of node 0 and that of each other node: who is there, and how each ends.

The collectives themselves say too little: on a GPU they may wait for a process that is gone until their time is up,
and what they say then names nobody. A socket is closed by the kernel, whatever ended its process; a node that lost its
power is noticed by keepalive.
"""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

Message = dict[str, Any]
Heard = Callable[["Channel", Message | None], None]
"""Is told each message, from a thread; None: the other side is gone."""

_LONGEST: Final = 64 * 1024
"""Bytes of a message."""
_CONNECT_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 10
"""Of silence, after which keepalive asks whether the other side is there."""
_INTERVAL_SECONDS: Final = 5
_TRIES: Final = 3
_UNHEARD_SECONDS: Final = _IDLE_SECONDS + _TRIES * _INTERVAL_SECONDS
"""How long what was sent may stay unanswered: until it is answered keepalive asks nothing, and a kernel sends again for
a quarter of an hour."""


class Channel:
    """One side of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _TRIES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_SECONDS * 1000)

    @property
    def address(self) -> str:
        """The address of this side, as it knows itself: collectives tell the others this one, whatever lies between."""
        return str(self._connection.getsockname()[0])

    def listen(self, heard: Heard) -> None:
        """Tell `heard` what comes, in a thread of its own."""
        threading.Thread(target=self._read, args=(heard,), name="channel", daemon=True).start()

    def send(self, **message: Any) -> bool:
        """Send a message; return whether the other side was there to take it."""
        try:
            with self._sending:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def ask(self) -> bool:
        """Tell whether the other side answers, within seconds."""
        self._connection.settimeout(_CONNECT_SECONDS)
        return self.send(here="?") and next(self._messages(), None) is not None

    def closes(self, seconds: float) -> bool:
        """Tell whether the other side is gone, or goes within `seconds`; False where it says something."""
        try:
            readable, _, _ = select.select([self._connection], [], [], seconds)
            return bool(readable) and not self._connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):  # closed on this side
            return True

    def close(self) -> None:
        """Let the other side see the end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, heard: Heard) -> None:
        for message in self._messages():
            heard(self, message)
        heard(self, None)

    def _messages(self) -> Iterator[Message]:
        try:
            with self._connection.makefile("rb") as lines:
                while line := lines.readline(_LONGEST):
                    message = json.loads(line)
                    if isinstance(message, dict):
                        yield message
        except (OSError, ValueError):
            return


def connect(host: str, port: int) -> Channel | None:
    """Return a channel to `host`; None where nobody answers, or the name is not known yet."""
    try:
        return Channel(socket.create_connection((host, port), _CONNECT_SECONDS))
    except OSError:
        return None


def reaches(host: str, port: int) -> bool:
    """Tell whether `host` can be reached on this port, where a Listener answers.

    A connection is not enough: what stands between may take it, as a mesh's sidecar does, and carry nothing.
    """
    return any(_answers(host, port) for _ in range(_TRIES))


def _answers(host: str, port: int) -> bool:
    channel = connect(host, port)
    if channel is None:
        return False
    try:
        return channel.ask()
    finally:
        channel.close()


def answer(channel: Channel, message: Message | None) -> None:
    """Be what a Listener does for `reaches`."""
    if message is not None:
        channel.send(here=True)


def _server(port: int) -> socket.socket:
    """Return a socket that takes IPv6 and IPv4, as far as the pod has them."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 is there and switched off; a port that is taken is told below
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


class Listener:
    """Takes the channels of the other nodes, each in a thread."""

    def __init__(self, port: int, heard: Heard) -> None:
        self._heard = heard
        self._socket = _server(port)
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept would take one more
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            Channel(connection).listen(self._heard)
