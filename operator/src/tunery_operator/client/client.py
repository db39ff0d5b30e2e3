"""One pool of connections to the API server; JSON in, JSON out, each call named by the right it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import orjson
import urllib3
from kubernetes.client.api_client import ApiClient

from tunery_operator.client.connection import Connection, load_connection
from tunery_operator.client.permissions import OPERATOR_PERMISSIONS, Call
from tunery_operator.client.total_timeout import with_total_timeout
from tunery_operator.errors import ApiFailure
from tunery_operator.metrics import API_REQUESTS

TIMEOUT: Final = urllib3.Timeout(connect=10, read=30)
"""`read` holds for a whole answer."""
POOL_SIZE: Final = 64
DEFAULT_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
"""No answer can make an object wait for longer than this."""

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


class HttpError(ApiFailure):
    """An answer of 400 or more; `body` is the Status object, empty where there is none.

    `retry_after` is what the server asked for, in seconds: the queue heeds it, a worker never sleeps.
    """

    def __init__(self, call: Call, status: int, body: Json, retry_after: float | None = None) -> None:
        self.body = body
        self.verb = call.verb
        super().__init__(status, f"{call.verb} {call.rbac_resource}: {status} {body.get('message', '')}")
        self.retry_after = retry_after


class KubeClient:
    """The API server, as this operator uses it; safe to share between threads."""

    def __init__(
        self,
        connection: Connection,
        timeout: urllib3.Timeout = TIMEOUT,
        allowed: frozenset[Call] = OPERATOR_PERMISSIONS,
    ) -> None:
        configuration = connection.configuration
        configuration.connection_pool_maxsize = POOL_SIZE
        # A write that was lost on the way is tried again by the queue, never behind its back.
        configuration.retries = urllib3.Retry(0)
        self._connection = connection
        self._timeout = timeout
        self._allowed = allowed
        self._pool = with_total_timeout(ApiClient(configuration).rest_client.pool_manager)

    def request(
        self,
        call: Call,
        namespace: str | None,
        name: str | None = None,
        body: Any = None,
        query: Mapping[str, str] | None = None,
    ) -> Json:
        """Send one request and return the JSON answer.

        `create` with a name is a server-side apply, which needs `fieldManager` in the query: its address has the name,
        so that a Role may hold the right for this one only.

        Raises HttpError for an answer of 400 or more, ApiFailure (status 0) where none came.
        """
        if call not in self._allowed:
            raise ValueError(f"{call} is none of the rights that this client has")
        url = self._connection.host + _path(call, namespace, name) + (f"?{urlencode(query)}" if query else "")
        method, kind = _HOW.get((call.verb, name is not None), (_METHODS[call.verb], "application/json"))
        try:
            answer = self._pool.request(
                method,
                url,
                body=None if body is None else orjson.dumps(body),
                headers={"Content-Type": kind, "Accept": "application/json", **self._connection.headers()},
                timeout=self._timeout,
            )
        except urllib3.exceptions.HTTPError as error:
            API_REQUESTS.labels(call.verb, call.rbac_resource, "0").inc()
            raise ApiFailure(0, f"{call.verb} {call.rbac_resource}: {error}") from error
        API_REQUESTS.labels(call.verb, call.rbac_resource, str(answer.status)).inc()
        return _parse(call, answer.status, answer.data, answer.headers.get("Retry-After"))

    def get(self, call: Call, namespace: str, name: str) -> Json | None:
        """Return one object, or None where there is none."""
        try:
            return self.request(call, namespace, name)
        except HttpError as error:
            if error.status == 404:
                return None
            raise


def _path(call: Call, namespace: str | None, name: str | None) -> str:
    parts = [_VERSIONS[call.group], f"namespaces/{namespace}" if namespace else "", call.resource, name or ""]
    return "/".join(part for part in [*parts, call.subresource] if part)


def _parse(call: Call, status: int, data: bytes, retry_after: str | None) -> Json:
    try:
        body = orjson.loads(data) if data else {}
    except ValueError:
        body = {"message": data[:200].decode(errors="replace")}
    if status >= 400:
        raise HttpError(call, status, body if isinstance(body, dict) else {}, seconds_to_wait(status, retry_after))
    return body if isinstance(body, dict) else {}


def seconds_to_wait(status: int, retry_after: str | None) -> float | None:
    """Return the seconds that an answer asks to wait; None where it asks for none.

    Only 429 and 5xx mean it; the API server writes whole seconds, and a date, which HTTP allows, would be read by the
    clock of another machine: it counts as one second, like a 429 without any word.
    """
    if status != 429 and status < 500:
        return None
    if retry_after is None:
        return DEFAULT_RETRY_SECONDS if status == 429 else None
    return min(float(retry_after), MAX_RETRY_SECONDS) if retry_after.isdecimal() else DEFAULT_RETRY_SECONDS


def load_client(
    connection: Connection | None = None,
    timeout: urllib3.Timeout = TIMEOUT,
    allowed: frozenset[Call] = OPERATOR_PERMISSIONS,
) -> KubeClient:
    """Return a client for the cluster that the process runs in, else for the current kubeconfig."""
    return KubeClient(connection or load_connection(), timeout, allowed)
