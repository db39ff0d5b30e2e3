"""A way to a server that is slow and breaks: every byte passes here, at a set rate, and some connections are cut."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import Final

_CHUNK: Final = 16 << 10


class BadNetwork:
    """Listens on a port of its own and passes on to `target`; all connections share the rate."""

    def __init__(self, target: tuple[str, int], bytes_per_second: float, cut_share: float, seed: int) -> None:
        """`cut_share` is the share of connections that are reset somewhere on the way."""
        self._target = target
        self._rate = bytes_per_second
        self._share = cut_share
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        self._free_at = time.monotonic()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = self.cuts = self.bytes = 0

    @property
    def endpoint(self) -> str:
        """The address to give to clients."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        """Accept connections from now on."""
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            cut_after = None
            if self._draw.random() < self._share:
                cut_after = int(self._draw.expovariate(1 / 200_000))
            threading.Thread(target=self._serve, args=(client, cut_after), daemon=True).start()

    def _serve(self, client: socket.socket, cut_after: int | None) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        both = _Connection(client, server, cut_after)
        back = threading.Thread(target=self._pass_on, args=(both, server, client), daemon=True)
        back.start()
        self._pass_on(both, client, server)
        back.join()
        both.close()

    def _pass_on(self, both: _Connection, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(_CHUNK):
                self._wait(len(chunk))
                if both.is_cut(len(chunk)):
                    with self._lock:
                        self.cuts += 1
                    both.reset()
                    return
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            both.close()

    def _wait(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        with self._lock:
            self.bytes += count
            self._free_at = max(time.monotonic(), self._free_at) + count / self._rate
            due = self._free_at
        time.sleep(max(0.0, due - time.monotonic()))


class _Connection:
    """Both ends of a connection, and after how many bytes it is cut."""

    def __init__(self, client: socket.socket, server: socket.socket, cut_after: int | None) -> None:
        self._ends = (client, server)
        self._left = cut_after

    def is_cut(self, count: int) -> bool:
        """Tell whether these bytes are those on which it breaks; once only."""
        if self._left is None:
            return False
        self._left -= count
        if self._left > 0:
            return False
        self._left = None
        return True

    def reset(self) -> None:
        """Close both ends with a reset, as a router does that has forgotten them."""
        for end in self._ends:
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            except OSError:
                continue
        self.close()

    def close(self) -> None:
        """Close both ends."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
