"""The endpoint's server: counts connections before any TLS, and gives none of them longer than it needs.

aiohttp has no deadline for a request's head, and asyncio tells nobody of a connection before its TLS handshake: any pod
of the cluster could hold as many as the process has file descriptors. So each connection begins at a gate, which
counts it, starts TLS by itself, and keeps one timer for whatever the connection has to do next.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio import sslproto
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tunery_operator.metrics import PROGRESS_CONNECTIONS, PROGRESS_REFUSED
from tunery_operator.progress.tls import Certificate

logger = logging.getLogger(__name__)

LINGER_SECONDS: Final = 1.0
STOP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be, and the seconds that each stage of one may take."""

    connections: int = 4000
    per_address: int = 256
    """More than a node has pods: where the network hides pods behind their node, all of them must fit."""
    handshake: float = 5.0
    head: float = 5.0
    """From the connection, or the first byte of a further request, to the end of its head."""
    request: float = 15.0
    """From the end of the head to the answer."""
    idle: float = 75.0
    """Between two requests of a connection."""


class ProgressServer:
    """Serves one application over TLS, within limits."""

    def __init__(self, app: web.Application, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        app.middlewares.append(self._time)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_http_logger(),
            keepalive_timeout=self.limits.idle,
            lingering_time=LINGER_SECONDS,
        )
        self._server: asyncio.Server | None = None
        self._by_address: Counter[str] = Counter()
        self._gates: set[_Gate] = set()
        self._by_transport: dict[Any, _Gate] = {}

    async def start(self, port: int, certificate: Certificate, host: str | None = None) -> int:
        """Listen; returns the port, which the system chose where it was 0.

        As long as there is no certificate to serve, connections end at once, as with nobody there.
        """
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Gate(self, certificate.context), host, port, backlog=1024)
        listening: int = self._server.sockets[0].getsockname()[1]
        return listening

    async def stop(self) -> None:
        """Take no more connections, let requests that run end, and close all."""
        if self._server is not None:
            self._server.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._runner.cleanup()
        except TimeoutError:
            logger.debug("requests still ran when the progress endpoint stopped")
        self.close_connections()

    def close_connections(self) -> None:
        """Close every connection, as when another replica has become the leader: the pods then come to that one."""
        for gate in list(self._gates):
            gate.abort()

    @web.middleware
    async def _time(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Give a request its own deadline, and its connection the idle one when it is answered."""
        gate = self._by_transport.get(request.transport)
        if gate is None:
            return await handler(request)
        gate.in_request(True)
        try:
            return await handler(request)
        finally:
            gate.in_request(False)

    # What a gate asks of its server

    def handler(self) -> asyncio.Protocol:
        """Return aiohttp's protocol for one connection."""
        server = self._runner.server
        assert server is not None, "start() has set it up"  # noqa: S101 - a fact of this class, for the type checker
        return server()

    def enter(self, gate: _Gate) -> str | None:
        """Count a connection; returns why it must be closed, None where it may stay."""
        if len(self._gates) >= self.limits.connections:
            return "all"
        if self._by_address[gate.address] >= self.limits.per_address:
            return "address"
        self._gates.add(gate)
        self._by_address[gate.address] += 1
        PROGRESS_CONNECTIONS.set(len(self._gates))
        return None

    def secured(self, gate: _Gate, transport: asyncio.Transport) -> None:
        """Know a connection by its TLS transport, which is all that a request tells."""
        self._by_transport[transport] = gate

    def leave(self, gate: _Gate, transport: asyncio.Transport | None) -> None:
        """Forget a connection that has ended."""
        self._by_transport.pop(transport, None)
        if gate not in self._gates:
            return
        self._gates.remove(gate)
        self._by_address[gate.address] -= 1
        if not self._by_address[gate.address]:
            del self._by_address[gate.address]
        PROGRESS_CONNECTIONS.set(len(self._gates))


def _http_logger() -> logging.Logger:
    """Return a logger for aiohttp that leaves out what a client did wrong: else any pod could fill our log."""
    http = logging.getLogger(f"{__name__}.http")
    if not http.filters:
        http.addFilter(_is_ours)
    return http


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _look_at(done: asyncio.Future[None]) -> None:
    """Take note of an error that nobody waits for, so that asyncio does not log it as one that was forgotten."""
    if not done.cancelled():
        done.exception()


class _Tls(sslproto.SSLProtocol):
    """TLS of one connection, with a buffer of the size of a record.

    asyncio's has 256 KiB, which a thousand connections make a quarter of a gigabyte.
    """

    max_size = 16 * 1024

    def __init__(self, gate: _Gate, context: ssl.SSLContext, seconds: float) -> None:
        self._gate = gate
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        # Nobody waits: `left` and `connection_made` of the gate tell what came of the handshake.
        waiter.add_done_callback(_look_at)
        super().__init__(
            loop,
            gate,
            context,
            waiter,
            server_side=True,
            ssl_handshake_timeout=seconds,  # type: ignore[arg-type] # any number does, typeshed knows of int only
        )

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell the gate, also where no TLS ever stood: asyncio tells only of what it had announced."""
        super().connection_lost(exc)
        self._gate.left()


class _Gate(asyncio.Protocol):
    """One connection: the plain one is made first; once TLS stands it is made again, and its bytes go to aiohttp."""

    def __init__(self, server: ProgressServer, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._context = context
        self._raw: asyncio.Transport | None = None
        self._secure: asyncio.Transport | None = None
        self._handler: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the plain connection in, or the one over TLS."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream always is, for the type checker
        if self._raw is None:
            self._admit(transport)
            return
        self._secure = transport
        self._server.secured(self, transport)
        self._handler = self._server.handler()
        self._handler.connection_made(transport)
        self._deadline(self._server.limits.head)

    def _admit(self, transport: asyncio.Transport) -> None:
        """Start TLS on a connection; it ends at once where there are too many, or is no certificate yet."""
        self._raw = transport
        if self._context is None:
            PROGRESS_REFUSED.labels("tls").inc()
            transport.abort()
            return
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        refused = self._server.enter(self)
        if refused is not None:
            PROGRESS_REFUSED.labels(refused).inc()
            transport.abort()
            return
        tls = _Tls(self, self._context, self._server.limits.handshake)
        transport.set_protocol(tls)
        tls.connection_made(transport)

    def left(self) -> None:
        """Forget the connection."""
        if self._secure is None:
            PROGRESS_REFUSED.labels("tls").inc()
        self._server.leave(self, self._secure)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell aiohttp that the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
        if self._handler is not None:
            self._handler.connection_lost(exc)

    def abort(self) -> None:
        """End the connection without any further word."""
        if self._raw is not None:
            self._raw.abort()

    def in_request(self, running: bool) -> None:
        """Take note that a request's head is complete, or that its answer is."""
        self._idle = not running
        self._deadline(self._server.limits.request if running else self._server.limits.idle)

    def _deadline(self, seconds: float) -> None:
        """Let the connection end in so many seconds, unless it gets another deadline before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        PROGRESS_REFUSED.labels("idle" if self._idle else "slow").inc()
        self.abort()

    def data_received(self, data: bytes) -> None:
        """Hand bytes on; the first of a further request start the time for its head."""
        if self._idle:
            self._idle = False
            self._deadline(self._server.limits.head)
        if self._handler is not None:
            self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        """Hand the end of the stream on."""
        return self._handler.eof_received() if self._handler is not None else None

    def pause_writing(self) -> None:
        """Hand on that the peer reads too slowly."""
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that the peer reads again."""
        if self._handler is not None:
            self._handler.resume_writing()
