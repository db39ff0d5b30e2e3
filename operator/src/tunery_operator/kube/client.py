"""One pool of connections to the API server; JSON in, JSON out, each call named by the right it uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from tunery_operator.errors import ApiFailure
from tunery_operator.kube.rbac import PERMISSIONS, Call

TIMEOUT: Final = urllib3.Timeout(connect=10, read=30)
POOL_SIZE: Final = 64

_VERSIONS: Final = {
    "": "/api/v1",
    "batch": "/apis/batch/v1",
    "tunery.dev": "/apis/tunery.dev/v1alpha1",
    "events.k8s.io": "/apis/events.k8s.io/v1",
    "authentication.k8s.io": "/apis/authentication.k8s.io/v1",
}
_METHODS: Final = {"get": "GET", "list": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}
_MERGE_PATCH: Final = "application/merge-patch+json"

Json = dict[str, Any]


class HttpError(ApiFailure):
    """An answer of 400 or more; `body` is the Status object, empty where there is none."""

    def __init__(self, call: Call, status: int, body: Json) -> None:
        self.body = body
        super().__init__(status, f"{call.verb} {call.rbac_resource}: {status} {body.get('message', '')}")


class KubeClient:
    """The API server, as this operator uses it; safe to share between threads."""

    def __init__(self, configuration: Configuration) -> None:
        configuration.connection_pool_maxsize = POOL_SIZE
        # A write that was lost on the way is tried again by the queue, never behind its back.
        configuration.retries = urllib3.Retry(0)
        self._configuration = configuration
        self._pool = ApiClient(configuration).rest_client.pool_manager

    def request(
        self,
        call: Call,
        namespace: str | None,
        name: str | None = None,
        body: Any = None,
        query: Mapping[str, str] | None = None,
    ) -> Json:
        """Send one request and return the JSON answer.

        Raises HttpError for an answer of 400 or more, ApiFailure (status 0) where none came.
        """
        if call not in PERMISSIONS:
            raise ValueError(f"{call} is missing in PERMISSIONS")
        url = self._configuration.host + _path(call, namespace, name) + (f"?{urlencode(query)}" if query else "")
        try:
            answer = self._pool.request(
                _METHODS[call.verb],
                url,
                body=None if body is None else json.dumps(body, separators=(",", ":")).encode(),
                headers=self._headers(call),
                timeout=TIMEOUT,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ApiFailure(0, f"{call.verb} {call.rbac_resource}: {error}") from error
        return _parse(call, answer.status, answer.data)

    def _headers(self, call: Call) -> dict[str, str]:
        kind = _MERGE_PATCH if call.verb == "patch" else "application/json"
        headers = {"Content-Type": kind, "Accept": "application/json", "User-Agent": "tunery-operator"}
        auths: Mapping[str, Any] = self._configuration.auth_settings()
        headers |= {auth["key"]: auth["value"] for auth in auths.values()}
        return headers

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


def _parse(call: Call, status: int, data: bytes) -> Json:
    try:
        body = json.loads(data) if data else {}
    except ValueError:
        body = {"message": data[:200].decode(errors="replace")}
    if status >= 400:
        raise HttpError(call, status, body if isinstance(body, dict) else {})
    return body if isinstance(body, dict) else {}


def load_client() -> KubeClient:
    """Return a client for the cluster that the process runs in, else for the current kubeconfig."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return KubeClient(configuration)
