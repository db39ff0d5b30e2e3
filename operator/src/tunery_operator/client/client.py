"""Provide the client of the API server: JSON in, JSON out, and each call names the permission that it uses.

Requests run on aiohttp, as watches do, in an event loop of their own thread. The worker threads call it and wait.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, Final, NamedTuple, Self, TypeVar

import aiohttp
import orjson

from tunery_operator.client.connection import Connection
from tunery_operator.client.permissions import OPERATOR_PERMISSIONS, Call
from tunery_operator.errors import ApiFailure
from tunery_operator.metrics import API_REQUESTS

TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=10)
"""`total` is the time for a complete request, with its answer."""
DEFAULT_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
"""The longest delay that an answer can ask for."""

_VERSIONS: Final = {
    "": "/api/v1",
    "apps": "/apis/apps/v1",
    "batch": "/apis/batch/v1",
    "networking.k8s.io": "/apis/networking.k8s.io/v1",
    "policy": "/apis/policy/v1",
    "tunery.dev": "/apis/tunery.dev/v1alpha1",
    "authentication.k8s.io": "/apis/authentication.k8s.io/v1",
    "coordination.k8s.io": "/apis/coordination.k8s.io/v1",
}
_METHODS: Final = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}
_MERGE_PATCH: Final = "application/merge-patch+json"
_APPLY_PATCH: Final = "application/apply-patch+yaml"
_HOW: Final = {("patch", True): ("PATCH", _MERGE_PATCH), ("create", True): ("PATCH", _APPLY_PATCH)}

Json = dict[str, Any]
T = TypeVar("T")


class _Answer(NamedTuple):
    status: int
    data: bytes
    retry_after: str | None


class HttpError(ApiFailure):
    """An answer of 300 or more; `body` is the Status object, empty without one.

    `retry_after` is the time in seconds that the server asks for: the queue waits, a worker never sleeps.
    """

    def __init__(self, call: Call, status: int, body: Json, retry_after: float | None = None) -> None:
        self.body = body
        self.verb = call.verb
        super().__init__(status, f"{call.verb} {call.rbac_resource}: {status} {body.get('message', '')}")
        self.retry_after = retry_after


class KubeClient:
    """Sends requests to the API server; safe to share between threads."""

    def __init__(
        self,
        connection: Connection,
        timeout: aiohttp.ClientTimeout = TIMEOUT,
        allowed: frozenset[Call] = OPERATOR_PERMISSIONS,
    ) -> None:
        self._connection = connection
        self._timeout = timeout
        self._allowed = allowed
        self._loop = _event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | bool | None = None
        """The certificates of new connections; None: read the files again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; a later request fails."""
        if self._session is not None:
            self._run(self._session.close())

    def request(
        self,
        call: Call,
        namespace: str | None,
        name: str | None = None,
        body: Any = None,
        query: Mapping[str, str] | None = None,
    ) -> Json:
        """Send one request and return the JSON answer.

        `create` with a name is a server-side apply, which needs `fieldManager` in the query. Its URL has the name, so
        that a Role can grant the permission for one object only.

        Raises HttpError for an answer of 300 or more, ApiFailure (status 0) if none came.
        """
        if call not in self._allowed:
            raise ValueError(f"{call} is not among the permissions of this client")
        method, kind = _HOW.get((call.verb, name is not None), (_METHODS[call.verb], "application/json"))
        options = {
            "headers": {"Content-Type": kind, "Accept": "application/json", **self._connection.headers()},
            "data": None if body is None else orjson.dumps(body),
            "params": query,
        }
        try:
            answer = self._run(self._send(method, _path(call, namespace, name), options))
        # Files of certificates that are missing while they are replaced are OSErrors, as a timeout is.
        except (aiohttp.ClientError, OSError) as error:
            API_REQUESTS.labels(call.verb, call.rbac_resource, "0").inc()
            what = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise ApiFailure(0, f"{call.verb} {call.rbac_resource}: {what}") from error
        API_REQUESTS.labels(call.verb, call.rbac_resource, str(answer.status)).inc()
        return _parse(call, answer)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _send(self, method: str, path: str, options: dict[str, Any]) -> _Answer:
        """Send a request. The queue tries a lost write again; aiohttp never repeats a POST or a PATCH."""
        session = self._session = self._session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), timeout=self._timeout
        )
        if session.closed:
            raise aiohttp.ClientConnectionError("the client is closed")
        try:
            self._tls = self._tls or self._connection.ssl_context() or True
            options = {**options, "ssl": self._tls, **self._connection.route()}
            async with session.request(method, self._connection.host + path, **options) as response:
                answer = _Answer(response.status, await response.read(), response.headers.get("Retry-After"))
        except aiohttp.ClientConnectionError:
            self._tls = None
            raise
        if answer.status == 401:
            self._tls = None  # the client certificate may have expired
        return answer

    def get(self, call: Call, namespace: str, name: str) -> Json | None:
        """Return one object, or None if it does not exist."""
        try:
            return self.request(call, namespace, name)
        except HttpError as error:
            if error.status == 404:
                return None
            raise


def _path(call: Call, namespace: str | None, name: str | None) -> str:
    parts = [_VERSIONS[call.group], f"namespaces/{namespace}" if namespace else "", call.resource, name or ""]
    return "/".join(part for part in [*parts, call.subresource] if part)


def _parse(call: Call, answer: _Answer) -> Json:
    try:
        body = orjson.loads(answer.data) if answer.data else {}
    except ValueError:
        body = {"message": answer.data[:200].decode(errors="replace")}
    body = body if isinstance(body, dict) else {}
    if answer.status >= 300:
        raise HttpError(call, answer.status, body, seconds_to_wait(answer.status, answer.retry_after))
    return body


def seconds_to_wait(status: int, retry_after: str | None) -> float | None:
    """Return the seconds that an answer asks to wait; None if it asks for no delay.

    Only 429 and 5xx can ask. The API server writes whole seconds. A date, which HTTP allows, would need the clock of
    another machine: it counts as one second, like a 429 without Retry-After.
    """
    if status != 429 and status < 500:
        return None
    if retry_after is None:
        return DEFAULT_RETRY_SECONDS if status == 429 else None
    return min(float(retry_after), MAX_RETRY_SECONDS) if retry_after.isdecimal() else DEFAULT_RETRY_SECONDS


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all requests; the first call starts its thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http", daemon=True).start()
    return loop
