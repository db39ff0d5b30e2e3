"""What stands between a pod and a server on somebody's network: a way, a proxy, an authority of their own."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from tools.cluster.certs import Pair

Address = tuple[str, int]
Handle = Callable[[socket.socket], None]


@contextmanager
def way(at: Address, to: Address, tls: Pair | None = None) -> Iterator[None]:
    """Listen at an address and hand every byte on to another; `tls`: end TLS here, as an ingress does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if tls else None
    if context is not None and tls is not None:
        context.load_cert_chain(tls.cert, tls.key)

    def handle(client: socket.socket) -> None:
        inner = context.wrap_socket(client, server_side=True) if context else client
        _join(inner, socket.create_connection(to))

    with _listening(at, handle):
        yield


@contextmanager
def proxy(at: Address, routes: dict[str, Address]) -> Iterator[list[str]]:
    """Serve HTTP's CONNECT at an address; `routes` says where each `host:port` that only it knows really is.

    Yields what was asked for. Any other place is refused, as a proxy with an allow-list does.
    """
    asked: list[str] = []

    def handle(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := client.recv(1 << 12)):
                return
            head += more
        method, place = head.decode("latin-1").split()[:2]
        asked.append(place)
        if method != "CONNECT" or place not in routes:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        _join(client, socket.create_connection(routes[place]))

    with _listening(at, handle):
        yield asked


@contextmanager
def _listening(at: Address, handle: Handle) -> Iterator[None]:
    with closing(socket.create_server(at)) as server:
        threading.Thread(target=_accept, args=(server, handle), daemon=True).start()
        yield
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, handle: Handle) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_one, args=(client, handle), daemon=True).start()


def _one(client: socket.socket, handle: Handle) -> None:
    # A peer that goes away, or knows another authority, is its own affair.
    with closing(client), suppress(OSError):
        handle(client)


def _join(one: socket.socket, other: socket.socket) -> None:
    """Carry both directions until either ends."""
    back = threading.Thread(target=_pump, args=(other, one), daemon=True)
    back.start()
    _pump(one, other)
    back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
