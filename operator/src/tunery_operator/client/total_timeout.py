"""Requests of urllib3 that end in time: its own timeout for reading begins anew with each byte of an answer.

What trainer and server report with does the same (`tunery_common.progress_client`), in code of its own: the operator
shares no code with what runs in pods but the API.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import time
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

_SHORTEST: Final = 0.001
"""Seconds; 0 would have a socket wait for nothing at all."""


def with_total_timeout(pool: urllib3.PoolManager) -> urllib3.PoolManager:
    """Return a pool, made so that a request's timeout for reading holds for the whole answer; urllib3's errors."""
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


class _InTime(io.RawIOBase):
    """What comes over a socket until `deadline`, however it comes: a socket's own timeout begins anew with each byte.

    Raises TimeoutError from then on.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._deadline = deadline
        self._raw = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Tell that it is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what is there, or wait for it."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer was not whole in time")
        self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Let go of the socket, which its connection may have closed before."""
        self._raw.close()
        super().close()


class _Whole(HTTPConnection):
    """A connection whose timeout for reading holds for the whole answer, and that for connecting for each sending."""

    _RECORD: Final = 1 << 14
    """Bytes that TLS sends in one piece."""

    def send(self, data: Any) -> None:
        """Send all of it in time."""
        if self.sock is None:
            self.connect()
        if not isinstance(data, bytes) or self.sock is None or self.timeout is None:
            super().send(data)
            return
        deadline = time.monotonic() + self.timeout
        for start in range(0, len(data), self._RECORD):
            self.sock.settimeout(max(_SHORTEST, deadline - time.monotonic()))
            super().send(data[start : start + self._RECORD])

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself has it
        """Read the head of the answer, whose body is read in what is left of the time."""
        deadline = time.monotonic() + self.timeout if self.timeout is not None else math.inf

        class Answer(http.client.HTTPResponse):
            def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
                super().__init__(sock, *args, **kwargs)
                self.fp.close()
                self.fp = io.BufferedReader(_InTime(sock, deadline))

        self.response_class = Answer
        return super().getresponse()


class _WholeTls(_Whole, HTTPSConnection):
    """The same within TLS, whose handshake has the time for connecting."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Whole


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WholeTls
