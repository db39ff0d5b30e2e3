"""A server that takes any request, and answers it byte by byte, for ever."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

DRIPS = {
    "head": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"1"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n7\r\n"),
    "refusal": (b"HTTP/1.1 503 Busy\r\nContent-Length: 100000\r\n\r\n", b"1"),
}
"""By where an answer drips: what comes at once, and what comes from then on."""
EVERY_SECONDS = 0.02


@contextmanager
def dripping(drip: str, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the URL of a server that answers by DRIPS."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(listener, *DRIPS[drip], tls), daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _serve(listener: socket.socket, begin: bytes, again: bytes, tls: ssl.SSLContext | None) -> None:
    with suppress(OSError):
        while True:
            threading.Thread(target=_drip, args=(listener.accept()[0], begin, again, tls), daemon=True).start()


def _drip(connection: socket.socket, begin: bytes, again: bytes, tls: ssl.SSLContext | None) -> None:
    with suppress(OSError), tls.wrap_socket(connection, server_side=True) if tls else connection as peer:
        peer.recv(65536)
        peer.sendall(begin)
        for byte in itertools.cycle(again):
            time.sleep(EVERY_SECONDS)
            peer.sendall(bytes([byte]))
