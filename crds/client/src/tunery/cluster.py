"""Provide requests to the API server as plain JSON, with the credentials of a kubeconfig or of a pod."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, kube_config, load_incluster_config
from urllib3.exceptions import HTTPError

from tunery.errors import Conflict, NotFound, TuneryError, Unavailable
from tunery_api.kinds import Kind
from tunery_api.names import API_VERSION, GROUP

Json = dict[str, Any]

REQUEST_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 60
"""How long one watch lasts: a connection that broke unnoticed is replaced after that time."""
PAGE: Final = 500
"""Objects of one page of a list."""
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_MERGE_PATCH: Final = "application/merge-patch+json"
_TABLE: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"
"""The media type of a list as `kubectl get` shows it; only such a list has the parameter includeObject."""


class Resource(NamedTuple):
    """A resource of the API server."""

    path: str
    """The prefix of its API group and version, such as /apis/batch/v1."""
    plural: str


PODS: Final = Resource("/api/v1", "pods")
EVENTS: Final = Resource("/api/v1", "events")
SECRETS: Final = Resource("/api/v1", "secrets")
REVIEWS: Final = Resource("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews")


def resource_of(kind: Kind) -> Resource:
    """Return the resource of one of Tunery's kinds."""
    return Resource(f"/apis/{API_VERSION}", kind.plural)


class WatchExpired(TuneryError):
    """The resource version of a watch or a list is too old: list again."""


class Cluster:
    """Sends requests to one API server, in one namespace unless told otherwise."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    @classmethod
    def load(cls, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> Self:
        """Return the cluster of a kubeconfig (as kubectl finds it), or else of the pod that this runs in.

        Raises TuneryError `NoCluster` if there is neither.
        """
        configuration = Configuration()
        given = kubeconfig or os.environ.get("KUBECONFIG") or context
        default = "default"
        try:
            if given or Path("~/.kube/config").expanduser().exists():
                options = {"config_file": kubeconfig, "context": context, "persist_config": False}
                kube_config.load_kube_config(client_configuration=configuration, **options)
                _, active = kube_config.list_kube_config_contexts(config_file=kubeconfig)
                chosen = active if context is None else _context(kubeconfig, context)
                default = chosen.get("context", {}).get("namespace") or default
            else:
                load_incluster_config(client_configuration=configuration)
                default = _NAMESPACE_FILE.read_text().strip()
        except (ConfigException, OSError, ValueError, TypeError) as error:
            remedy = "Name a kubeconfig by --kubeconfig or KUBECONFIG, and one of its contexts by --context"
            raise TuneryError("NoCluster", f"no cluster is configured: {error}", remedy) from error
        configuration.retries = False
        return cls(ApiClient(configuration), namespace or default)

    def within(self, namespace: str | None) -> Self:
        """Return the same cluster in another namespace; None: this one."""
        return self if namespace in (None, self.namespace) else type(self)(self.client, namespace)

    def close(self) -> None:
        """Close all connections."""
        self.client.rest_client.pool_manager.clear()

    def get(self, resource: Resource, name: str, subresource: str = "") -> Json:
        """Return one object of the namespace. Raises NotFound, TuneryError."""
        return self.request("GET", self.path(resource, name, subresource))

    def items(
        self, resource: Resource, *, selector: str = "", field: str = "", all_namespaces: bool = False
    ) -> tuple[list[Json], str]:
        """Return the objects of the namespace or of all, and the resource version to watch from. Raises TuneryError."""
        items, version = list[Json](), ""
        query = {"labelSelector": selector, "fieldSelector": field}
        for page in self._pages(self.path(resource, all_namespaces=all_namespaces), query):
            items += page["items"]
            version = page["metadata"]["resourceVersion"]
        return items, version

    def rows(self, resource: Resource, *, selector: str = "", all_namespaces: bool = False) -> list[Json]:
        """Return what `kubectl get` shows of each object: its cells by the name of the column. Raises TuneryError.

        With `all_namespaces` each row has the cell Namespace, too.
        """
        rows = list[Json]()
        query = {"labelSelector": selector, "includeObject": "Metadata" if all_namespaces else "None"}
        for page in self._pages(self.path(resource, all_namespaces=all_namespaces), query):
            names = [column["name"] for column in page["columnDefinitions"]]
            for row in page["rows"] or ():
                where = {"Namespace": row["object"]["metadata"]["namespace"]} if all_namespaces else {}
                rows.append(dict(zip(names, row["cells"], strict=True)) | where)
        return rows

    def _pages(self, path: str, query: Mapping[str, str]) -> Iterator[Json]:
        """Yield the pages of a list."""
        token = ""
        while True:
            page = self.request("GET", path, query={**query, "limit": str(PAGE), "continue": token})
            yield page
            token = page["metadata"].get("continue", "")
            if not token:
                return

    def create(self, resource: Resource, body: Json, *, dry_run: bool = False) -> Json:
        """Create an object; with `dry_run` the API server only validates it. Raises Conflict if it exists."""
        query = {"dryRun": "All" if dry_run else "", "fieldValidation": "Strict", "fieldManager": "tunery-client"}
        return self.request("POST", self.path(resource), body, query)

    def patch(self, resource: Resource, name: str, change: Json) -> Json:
        """Change the fields of `change` (RFC 7386): null removes a field. Raises NotFound, TuneryError."""
        query = {"fieldManager": "tunery-client"}
        return self.request("PATCH", self.path(resource, name), change, query)

    def delete(self, resource: Resource, name: str, uid: str | None = None) -> None:
        """Delete an object; with `uid` only that one, not a later one of the same name. Raises NotFound."""
        options: Json = {"propagationPolicy": "Background"} | ({"preconditions": {"uid": uid}} if uid else {})
        self.request("DELETE", self.path(resource, name), options)

    def can(self, verb: str, resource: str, *, group: str = GROUP, subresource: str = "") -> bool:
        """Return whether the user has a permission in the namespace."""
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        spec = {"resourceAttributes": asked | ({"subresource": subresource} if subresource else {})}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
        answer = self.request("POST", f"{REVIEWS.path}/{REVIEWS.plural}", review)
        return bool(answer["status"]["allowed"])

    def logs(
        self, pod: str, container: str, *, follow: bool = False, tail: int | None = None, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yield the lines of a container's log, each as (timestamp, text), from the second of `since` on.

        With `follow` it ends with the container. Raises Unavailable if the connection fails, or after 90 seconds
        without a line.
        """
        query = {
            "container": container, "timestamps": "true", "follow": "true" if follow else "", "tailLines": tail,
            "sinceTime": since,
        }  # fmt: skip
        for line in _lines(self._send("GET", self.path(PODS, pod, "log"), query=query, stream=True)):
            time, _, text = line.partition(" ")
            yield time, text

    def watch(
        self, resource: Resource, version: str, *, field: str = "", seconds: float = WATCH_SECONDS
    ) -> Iterator[tuple[str, Json]]:
        """Yield each change after a resource version as (type, object); ends after some seconds.

        Raises WatchExpired if the version is too old, Unavailable if the connection fails.
        """
        query = {
            "watch": "true", "resourceVersion": version, "fieldSelector": field,
            "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, math.ceil(seconds))),
        }  # fmt: skip
        for line in _lines(self._send("GET", self.path(resource), query=query, stream=True)):
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise _error(event["object"].get("code", 500), event["object"], "watch")
            yield event["type"], event["object"]

    def path(self, resource: Resource, name: str = "", subresource: str = "", *, all_namespaces: bool = False) -> str:
        """Return the path of a resource or of one object."""
        namespace = () if all_namespaces else ("namespaces", quote(self.namespace, safe=""))
        parts = (resource.path, *namespace, resource.plural, quote(name, safe=""), subresource)
        return "/".join(part for part in parts if part)

    def request(self, method: str, path: str, body: Json | None = None, query: Mapping[str, Any] | None = None) -> Json:
        """Send a request and return the JSON answer. Raises NotFound, Conflict, TuneryError."""
        data = self._send(method, path, body, query).data
        parsed: Json = json.loads(data) if data else {}
        return parsed

    def _send(
        self, method: str, path: str, body: Json | None = None, query: Mapping[str, Any] | None = None,
        *, stream: bool = False,
    ) -> Any:  # fmt: skip
        """Send a request and return urllib3's response. Raises NotFound, Conflict, TuneryError."""
        pairs = [(key, value) for key, value in (query or {}).items() if value not in ("", None)]
        headers = {
            "Accept": _TABLE if "includeObject" in (query or {}) else "application/json",
            "Content-Type": _MERGE_PATCH if method == "PATCH" else "application/json",
        }
        request = self.client.param_serialize(
            method, path, query_params=pairs, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        timeout = (REQUEST_SECONDS, WATCH_SECONDS + REQUEST_SECONDS) if stream else REQUEST_SECONDS
        try:
            response = self.client.call_api(*request, _request_timeout=timeout).response
            if response.status >= 300:
                raise _error(response.status, _status_of(response.data), f"{method} {path}")
        except ApiException as error:
            if not error.status:
                # No answer at all: the TLS connection failed.
                raise self._unavailable(error.reason) from error
            raise _error(error.status, _status_of(error.body), f"{method} {path}") from error
        except (HTTPError, OSError) as error:
            raise self._unavailable(error) from error
        return response

    def _unavailable(self, error: object) -> Unavailable:
        remedy = "Check the cluster's address in the kubeconfig, the network, and any VPN"
        return Unavailable("ClusterUnavailable", f"{self.client.configuration.host} does not answer: {error}", remedy)


def _context(kubeconfig: str | None, name: str) -> Json:
    contexts, _ = kube_config.list_kube_config_contexts(config_file=kubeconfig)
    return next((each for each in contexts if each["name"] == name), {})


def _lines(response: Any) -> Iterator[str]:
    """Yield the lines of a response as they come. Raises TuneryError if the connection fails."""
    rest = b""
    try:
        for chunk in response.stream(65536, decode_content=True):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
    except (HTTPError, OSError) as error:
        raise Unavailable("ClusterUnavailable", f"the connection to the API server broke: {error}") from error
    finally:
        # If the reader stopped early, the rest of this response must not be read as the next one.
        response.close()
        response.release_conn()
    if rest:
        yield rest.decode(errors="replace")


def _status_of(body: bytes | str | None) -> Json:
    """Return a Status object, or the beginning of what else a server has answered."""
    try:
        parsed = json.loads(body or "{}")
    except ValueError:
        text = body if isinstance(body, str) else (body or b"").decode(errors="replace")
        return {"message": " ".join(text[:200].split())}
    return parsed if isinstance(parsed, dict) else {}


def _error(code: int, status: Json, what: str) -> TuneryError:
    """Return the error of an answer, with what to do."""
    message, reason = status.get("message") or what, status.get("reason") or "ClusterError"
    if code == 404 and not status.get("details", {}).get("name"):
        remedy = "Ask a cluster admin to install Tunery's chart, or choose another cluster by --context"
        return NotFound("NotInstalled", "this cluster does not have Tunery's resources", remedy)
    if code == 404:
        return NotFound("NotFound", message, "List what there is: tunery list -A")
    if code == 410:
        return WatchExpired(reason, message, "Try again")
    if code == 409:
        return Conflict(reason, message)
    if code == 403 and reason == "Forbidden":
        return TuneryError(reason, message, "Ask a cluster admin for this permission. What you may do: tunery doctor")
    if code == 401:
        return TuneryError(
            "Unauthorized", "the API server does not accept the credentials", "Log in to the cluster again"
        )
    if code == 429 or code >= 500:
        return Unavailable(reason, message, "Try again; the API server is overloaded or restarts")
    return TuneryError(reason, message)
