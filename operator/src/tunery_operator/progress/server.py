"""Provide the HTTPS endpoint that pods post reports to, with limits on connections, requests, and the rate of reports.

A pod may report only for the object that its token belongs to: nothing in the body chooses the object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import ssl
import time
from asyncio import sslproto
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError
from pydantic import ValidationError

from tunery_api.kinds import JOB_KINDS
from tunery_api.lenient import without_invalid
from tunery_api.runspec import TrainerStatus
from tunery_operator.errors import ApiFailure
from tunery_operator.metrics import PROGRESS_CONNECTIONS, PROGRESS_POSTS, PROGRESS_REFUSED
from tunery_operator.observed.metadata import Key, format_time
from tunery_operator.progress.auth import ReviewsBusy, TokenReviewer, read_claim
from tunery_operator.progress.replicas import MAX_REPORT, Replicas
from tunery_operator.progress.tls import Certificate
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.object_state import Report
from tunery_operator.runtime.priority_queue import Priority
from tunery_operator.runtime.workqueue import WorkQueue

logger = logging.getLogger(__name__)

MAX_BODY: Final = 64 * 1024
"""Bytes of the report of a pod that trains."""
BODY_SECONDS: Final = 5.0
UNREAD_MILLISECONDS: Final = 15_000
"""A connection ends if its client doesn't read an answer in this time."""
MIN_SECONDS: Final = 0.9
"""Between two reports of one pod; the trainer keeps a second."""
MIN_INTERVAL: Final = 3
MAX_INTERVAL: Final = 300
REPORTS_PER_SECOND: Final = 200
"""The interval between reports aims at this rate over all pods."""
MAX_PODS: Final = 100_000

sslproto.SSLProtocol.max_size = 16 * 1024
"""The buffer of a connection: one TLS record. asyncio's 256 KiB take 250 MB for 1,000 connections."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on connections, and the seconds after which the endpoint closes one."""

    connections: int = 2000
    handshakes: int = 256
    """At the same time; one more ends the oldest, so that idle connections don't keep pods from reporting."""
    handshake: float = 5.0
    idle: float = 5.5
    """From the handshake, or from an answer, to the end of the next request's head.

    It keeps the connections of up to 1,000 pods. Not a whole number, as intervals are: no pod posts just as its
    connection ends.
    """


class ProgressServer:
    """Serve one request handler over TLS."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._http = web.Server(
            handler, access_log=None, logger=_http_logger(), keepalive_timeout=self._limits.idle, lingering_time=1.0
        )
        self._handshakes: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        self._listener: socket.socket | None = None
        self._acceptor: asyncio.Task[None] | None = None
        PROGRESS_CONNECTIONS.set_function(self.connections)

    def connections(self) -> int:
        """Return the number of open connections."""
        return len(self._handshakes) + len(self._http.connections)

    async def start(self, port: int, certificate: Certificate, host: str = "") -> int:
        """Listen on `port`, or a free one for 0, and return it. `host` empty: on all addresses."""
        dual_stack = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual_stack else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=dual_stack)
        self._listener.setblocking(False)
        self._acceptor = asyncio.create_task(self._accept(self._listener, certificate))
        listening: int = self._listener.getsockname()[1]
        return listening

    async def stop(self) -> None:
        """Accept no more connections, let requests end for two seconds, and close all."""
        tasks = [*self._handshakes] + ([self._acceptor] if self._acceptor is not None else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await self._http.shutdown(timeout=2.0)

    async def _accept(self, listener: socket.socket, certificate: Certificate) -> None:
        """Accept connections, and close those above the limit or without a certificate to serve."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # such as no free file descriptor
                logger.debug("Could not accept a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            context = certificate.context
            if context is None or self.connections() >= self._limits.connections:
                PROGRESS_REFUSED.labels("tls" if context is None else "connections").inc()
                connection.close()
            else:
                self._begin_handshake(connection, context)
            await asyncio.sleep(0)  # a waiting connection is accepted without a pause

    def _begin_handshake(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        if len(self._handshakes) >= self._limits.handshakes:
            oldest, _ = self._handshakes.popitem(last=False)
            oldest.cancel()
            PROGRESS_REFUSED.labels("handshakes").inc()
        task = asyncio.create_task(self._secure(connection, context))
        self._handshakes[task] = None
        task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _secure(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        """Complete the TLS handshake, and hand the connection to the HTTP server."""
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._http, connection, ssl=context, ssl_handshake_timeout=self._limits.handshake
            )
        except OSError:
            PROGRESS_REFUSED.labels("tls").inc()


def _http_logger() -> logging.Logger:
    """Return a logger for aiohttp without the errors of clients: any pod could fill the log."""
    http = logging.getLogger(f"{__name__}.http")
    if not http.filters:
        http.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))
    return http


class Endpoint:
    """Accept reports, and enqueue their objects; `is_leader` returns whether this replica reconciles."""

    def __init__(
        self, reviewer: TokenReviewer, cache: Cache, queue: WorkQueue, is_leader: Callable[[], bool] = lambda: True
    ) -> None:
        self._reviewer = reviewer
        self._cache = cache
        self._queue = queue
        self._is_leader = is_leader
        self._pace = Pace()
        self._replicas = Replicas(cache, queue)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Return the answer to a request, whatever its path."""
        response = await self._answer(request)
        PROGRESS_POSTS.labels(str(response.status)).inc()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        """Return the answer. The cheapest checks come first; the body is read last."""
        if request.method != "POST":
            return _reject(405, "only POST is allowed")
        if not self._is_leader():
            response = _reject(503, "another replica leads; try again", retry_after=1)
            response.force_close()  # a new connection may reach the leader
            return response
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        claim = read_claim(token.strip()) if scheme.lower() == "bearer" else None
        if claim is None:
            return _reject(401, "a pod's token for this endpoint is needed")
        target = self._cache.owner_of_pod(*claim.pod)
        if target is None and self._cache.is_unproven(*claim.pod):
            return _reject(503, "the owner of this pod is not known yet", retry_after=1)
        if target is None:
            return _reject(403, "this pod works for no active object, or another pod reports for it")
        try:
            if not await self._reviewer.proves(token.strip(), claim):
                return _reject(401, "the token is not valid for this endpoint")
        except (ApiFailure, ReviewsBusy) as error:
            logger.debug("Could not review a progress token: %s", error)
            return _reject(503, "the token could not be reviewed", math.ceil(error.retry_after or 2))
        if not self._pace.admits(claim.pod.uid):
            return _reject(429, "one report a second is enough", retry_after=1)
        return await self._accept(request, *target, claim.pod.uid)

    async def _accept(self, request: web.BaseRequest, key: Key, uid: str, pod_uid: str) -> web.Response:
        trains = key.kind in JOB_KINDS
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.clone(client_max_size=MAX_BODY if trains else MAX_REPORT).read()
        except (TimeoutError, ConnectionError, web.RequestPayloadError):
            response = _reject(408, "the report did not arrive completely in time")
            response.force_close()
            return response
        except web.HTTPRequestEntityTooLarge:
            return _reject(413, "the report is too large")
        if not trains:
            try:
                return self._replicas.take(key, uid, pod_uid, body)
            except ValidationError as error:
                return _reject(422, f"not a report of a server's pod: {error.error_count()} errors")
        now = datetime.now(UTC)
        status = read_report(body, now)
        if status is None:
            return _reject(422, "not a report of a job's pod")
        self._store(key, uid, Report(status, pod_uid, now))
        return web.json_response({"message": "ok", "intervalSeconds": self._pace.interval()})

    def _store(self, key: Key, uid: str, report: Report) -> None:
        """Store a report and enqueue its object; the checkpoint of an earlier report stays if this one names none."""
        state = self._cache.state(key, uid)
        before = state.progress
        if before is not None and report.status.checkpoint is None:
            status = report.status.model_copy(update={"checkpoint": before.status.checkpoint})
            report = report._replace(status=status)
        state.progress = report
        self._queue.add([key], Priority.LOW)


def read_report(body: bytes, now: datetime) -> TrainerStatus | None:
    """Return a report without its invalid fields, or None if it is none. A time in the future becomes `now`."""
    try:
        reported = json.loads(body)["trainerStatus"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    valid = without_invalid(TrainerStatus, reported) if isinstance(reported, dict) else None
    if valid is None:
        return None
    status = TrainerStatus.model_validate(valid)
    if status.last_updated_time is None or datetime.fromisoformat(status.last_updated_time) > now:
        return status.model_copy(update={"last_updated_time": format_time(now)})
    return status


def _reject(status: int, text: str, retry_after: int | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response({"message": text}, status=status, headers=headers)


class Pace:
    """The time of each pod's last report, and the interval that follows from the number of pods."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: OrderedDict[str, float] = OrderedDict()

    def admits(self, pod_uid: str) -> bool:
        """Return whether a pod may report now, and store that it did."""
        now = self._clock()
        last = self._last.get(pod_uid)
        if last is not None and now - last < MIN_SECONDS:
            return False
        self._last[pod_uid] = now
        self._last.move_to_end(pod_uid)
        while len(self._last) > MAX_PODS or now - next(iter(self._last.values())) > 2 * MAX_INTERVAL:
            self._last.popitem(last=False)
        return True

    def interval(self) -> int:
        """Return the seconds after which a pod should report again."""
        return min(MAX_INTERVAL, max(MIN_INTERVAL, math.ceil(len(self._last) / REPORTS_PER_SECOND)))
