"""Provide the checks of `tunery doctor`: what works, what does not, and the command that fixes it."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tunery.cluster import Cluster, Json, Resource, resource_of
from tunery.errors import NotFound, TuneryError
from tunery.objects import View, list_objects, parse_time
from tunery.text import duration_text
from tunery_api.fields import parse_quantity
from tunery_api.kinds import JOB_KINDS, KINDS, Kind
from tunery_api.names import API_VERSION, GROUP

PASSED: Final = "Passed"
FAILED: Final = "Failed"
UNKNOWN: Final = "Unknown"

_LEASES: Final = "/apis/coordination.k8s.io/v1/leases"
_NODES: Final = Resource("/api/v1", "nodes")
_QUOTAS: Final = Resource("/api/v1", "resourcequotas")
_KUEUE: Final = "/apis/kueue.x-k8s.io"
_GPU_DOMAIN: Final = "nvidia.com/"
_OPERATOR_SECONDS: Final = 20.0
"""How long the operator may take to read a change, and to renew its Lease of 15 seconds."""
_RECENT_SECONDS: Final = 300.0
_COMMANDS: Final[Mapping[str, str]] = {
    "get": "all commands",
    "list": "list, usage, doctor",
    "watch": "watch, submit --watch",
    "create": "submit, train, resubmit, estimate",
    "patch": "stop, suspend, resume, retry, download",
    "delete": "estimate",
}
"""The commands that need each verb on Tunery's kinds."""
_READ: Final = ("get", "list", "watch")


class Check(NamedTuple):
    """The result of one check."""

    name: str
    result: str
    """Passed, Failed, or Unknown if this user can't see it."""
    message: str
    remedy: str = ""
    """The command that fixes it, or what to do."""


class Permission(NamedTuple):
    """Verbs on a resource, and the commands that need them."""

    resource: str
    verbs: Mapping[str, str]
    """The commands by verb."""
    group: str = ""
    subresource: str = ""

    @property
    def title(self) -> str:
        """The resource as kubectl names it."""
        plain = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{plain}/{self.subresource}" if self.subresource else plain


PERMISSIONS: Final = (
    *(Permission(kind.plural, _COMMANDS, GROUP) for kind in JOB_KINDS),
    Permission(Kind.ADAPTERSERVER.plural, {verb: _COMMANDS[verb] for verb in _READ}, GROUP),
    Permission("pods", {"get": "logs", "list": "logs, explain"}),
    Permission("pods", {"get": "logs"}, subresource="log"),
    Permission("events", {"list": "explain"}),
    Permission("pods", dict.fromkeys(("create", "get"), "download, report, chat"), subresource="portforward"),
)
"""What the commands need. A cluster admin creates AdapterServers, so only reading them is checked."""


def api_server(cluster: Cluster) -> Check:
    """Return whether the API server answers, and as which user. Raises TuneryError."""
    version = cluster.request("GET", "/version").get("gitVersion")
    user = user_name(cluster)
    known = f" as {user}" if user else ""
    return Check("API server", PASSED, f"{version} at {cluster.client.configuration.host}{known}")


def namespace(cluster: Cluster) -> Iterator[Check]:
    """Yield whether the namespace exists."""
    name, remedy = cluster.namespace, "Choose another one by -n; list them: kubectl get namespaces"
    try:
        cluster.request("GET", f"/api/v1/namespaces/{name}")
    except NotFound:
        yield Check("namespace", FAILED, f"{name} does not exist", remedy)
    else:
        yield Check("namespace", PASSED, name)


def resources(cluster: Cluster) -> Iterator[Check]:
    """Yield whether the API server has Tunery's kinds, with the fields that this client knows."""
    served = {each["name"] for each in cluster.request("GET", f"/apis/{API_VERSION}")["resources"]}
    missing = [kind.plural for kind in Kind if kind.plural not in served]
    upgrade = "Ask a cluster admin to upgrade: helm upgrade tunery CHART"
    if missing:
        yield Check("Tunery's resources", FAILED, f"{API_VERSION} lacks {', '.join(missing)}", upgrade)
        return
    older, newer = _different_fields(cluster)
    if older:
        yield Check("Tunery's resources", FAILED, f"the cluster lacks fields of this client: {_some(older)}", upgrade)
    if newer:
        update = "Update the client: pip install --upgrade tunery"
        yield Check("Tunery's resources", FAILED, f"this client lacks fields of the cluster: {_some(newer)}", update)
    if not older and not newer:
        yield Check("Tunery's resources", PASSED, f"{API_VERSION}, {len(Kind)} kinds, with the fields of this client")


def _different_fields(cluster: Cluster) -> tuple[list[str], list[str]]:
    """Return the spec fields that only this client has, and those that only the cluster has."""
    from tunery_api.crd import structural_schema

    schemas = cluster.request("GET", f"/openapi/v3/apis/{API_VERSION}")["components"]["schemas"].values()
    theirs, ours = set[str](), set[str]()
    for schema in schemas:
        for kind in (each["kind"] for each in schema.get("x-kubernetes-group-version-kind", ())):
            if kind in set(Kind):
                theirs |= {f"{kind} {path}" for path in _paths(schema["properties"]["spec"], "spec")}
                ours |= {f"{kind} {path}" for path in _paths(structural_schema(KINDS[Kind(kind)].spec), "spec")}
    return sorted(ours - theirs), sorted(theirs - ours)


def _paths(schema: Any, path: str) -> Iterator[str]:
    """Yield the path of every field of a schema."""
    for name, field in (schema.get("properties") or {}).items():
        yield f"{path}.{name}"
        yield from _paths(field, f"{path}.{name}")
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from _paths(inner, path)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def permissions(cluster: Cluster) -> Iterator[Check]:
    """Yield for each resource whether the user has the permissions that the commands need."""
    asked = [(each, verb) for each in PERMISSIONS for verb in each.verbs]

    def allowed(item: tuple[Permission, str]) -> bool:
        each, verb = item
        return cluster.can(verb, each.resource, group=each.group, subresource=each.subresource)

    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(((each.title, verb) for each, verb in asked), pool.map(allowed, asked), strict=True))
    user = user_name(cluster)
    for each in PERMISSIONS:
        missing = [verb for verb in each.verbs if not answers[each.title, verb]]
        name = f"permission for {each.title}"
        if not missing:
            yield Check(name, PASSED, ", ".join(each.verbs))
            continue
        needed = ", ".join(dict.fromkeys(word for verb in missing for word in each.verbs[verb].split(", ")))
        remedy = f"Ask a cluster admin: {_grant(each, cluster.namespace, user)}"
        yield Check(name, FAILED, f"you may not {', '.join(missing)}; needed by {needed}", remedy)


def _grant(permission: Permission, namespace: str, user: str) -> str:
    """Return the commands that give the user a permission."""
    role = f"tunery-{permission.title.partition('.')[0].replace('/', '-')}"
    account = user.removeprefix("system:serviceaccount:")
    subject = f"--serviceaccount={account}" if account != user else f"--user={shlex.quote(user or 'USER')}"
    verbs = ",".join(permission.verbs)
    return (
        f"kubectl create role {role} -n {namespace} --verb={verbs} --resource={permission.title} && "
        f"kubectl create rolebinding {role} -n {namespace} --role={role} {subject}"
    )


def user_name(cluster: Cluster) -> str:
    """Return the name of the user as the API server knows it; "" if it does not say."""
    review: Json = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    with suppress(TuneryError):
        answer = cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
        return str(answer["status"]["userInfo"].get("username", ""))
    return ""


def operator(cluster: Cluster) -> Iterator[Check]:
    """Yield whether the operator runs: by its Lease if the user may read it, or else by what it does with objects."""
    lease = _lease(cluster)
    if lease is not None:
        yield _lease_check(cluster, lease)
        return
    views = list_objects(cluster)
    waiting = [view for view in views if not _is_observed(view)]
    if waiting:
        yield _reading_check(cluster, waiting)
        return
    if not views:
        yield Check("operator", UNKNOWN, f"namespace {cluster.namespace} has no object that it could have read")
        return
    age = (datetime.now(UTC) - _last_write(cluster, views)).total_seconds()
    text = f"it has read all objects of the namespace, and last wrote one {duration_text(age)} ago"
    yield Check("operator", PASSED if age < _RECENT_SECONDS else UNKNOWN, text)


def _lease(cluster: Cluster) -> Json | None:
    """Return the Lease of the operator; None if there is none of the chart's usual name, or the user can't read it."""
    with suppress(TuneryError):
        found = cluster.request("GET", _LEASES, query={"fieldSelector": "metadata.name=tunery"})["items"]
        return next(iter(found), None)
    return None


def _lease_check(cluster: Cluster, lease: Json) -> Check:
    """Return whether the Lease is being renewed; clocks of different machines are not compared."""
    end, current = time.monotonic() + _OPERATOR_SECONDS, lease
    where = f"Lease tunery in namespace {lease['metadata']['namespace']}"
    while time.monotonic() < end:
        holder = (current.get("spec") or {}).get("holderIdentity")
        if holder and current["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
            return Check("operator", PASSED, f"{holder} renews the {where}")
        time.sleep(1)
        current = _lease(cluster) or current
    namespace = lease["metadata"]["namespace"]
    remedy = f"Ask a cluster admin: kubectl get pods -n {namespace} -l app.kubernetes.io/name=tunery"
    return Check("operator", FAILED, f"no operator renews the {where}", remedy)


def _reading_check(cluster: Cluster, waiting: list[View]) -> Check:
    """Return whether the operator reads the objects that it has not read yet."""
    end = time.monotonic() + _OPERATOR_SECONDS
    uids = {view.metadata["uid"] for view in waiting}
    while time.monotonic() < end:
        time.sleep(1)
        waiting = [view for view in list_objects(cluster) if view.metadata["uid"] in uids and not _is_observed(view)]
        if not waiting:
            return Check("operator", PASSED, "it has just read all objects of the namespace")
    remedy = "Ask a cluster admin: kubectl get pods -A -l app.kubernetes.io/name=tunery"
    return Check("operator", FAILED, f"it has not read {waiting[0].reference} within {_OPERATOR_SECONDS:.0f} s", remedy)


def _is_observed(view: View) -> bool:
    return bool(view.status.get("observedGeneration") == view.metadata["generation"])


def _last_write(cluster: Cluster, views: list[View]) -> datetime:
    """Return when the operator last wrote a status of the namespace, or when its latest object was created."""
    bodies = (body for kind in {view.kind for view in views} for body in cluster.items(resource_of(kind))[0])
    fields = (each for body in bodies for each in body["metadata"].get("managedFields") or ())
    times = [each["time"] for each in fields if each.get("subresource") == "status" and each.get("time")]
    return max([*(view.created for view in views), *map(parse_time, times)])


def gpus(cluster: Cluster) -> Iterator[Check]:
    """Yield the GPUs of the nodes that new pods may run on."""
    nodes = [node for node in cluster.items(_NODES, all_namespaces=True)[0] if not node["spec"].get("unschedulable")]
    found, having = Counter[str](), 0
    for node in nodes:
        own = {
            name: int(parse_quantity(count))
            for name, count in (node["status"].get("allocatable") or {}).items()
            if name.startswith(_GPU_DOMAIN) and int(parse_quantity(count))
        }
        found.update(own)
        having += bool(own)
    if not found:
        text = f"none of {len(nodes)} nodes has one, but an autoscaler may add nodes"
        yield Check("GPUs", UNKNOWN, text, "To train on CPU: tunery train --gpus 0 …")
        return
    counts = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    yield Check("GPUs", PASSED, f"{counts} on {having} of {len(nodes)} nodes")


def queues(cluster: Cluster) -> Iterator[Check]:
    """Yield the LocalQueues of the namespace if Kueue is installed."""
    try:
        version = cluster.request("GET", _KUEUE)["preferredVersion"]["groupVersion"]
    except NotFound:
        yield Check("Kueue", PASSED, "not installed; jobs do not queue")
        return
    found, _ = cluster.items(Resource(f"/apis/{version}", "localqueues"))
    if not found:
        yield Check("Kueue", UNKNOWN, f"namespace {cluster.namespace} has no LocalQueue; jobs do not queue")
    for queue in found:
        yield queue_check(queue)


def queue_check(queue: Json) -> Check:
    """Return whether a LocalQueue admits workloads."""
    name, status = queue["metadata"]["name"], queue.get("status") or {}
    active = next((each for each in status.get("conditions") or () if each["type"] == "Active"), None)
    if active is None or active["status"] != "True":
        remedy = f"Ask a cluster admin: kubectl describe clusterqueue {queue['spec'].get('clusterQueue')}"
        return Check(f"LocalQueue {name}", FAILED, active["message"] if active else "Kueue has not read it", remedy)
    counts = f"{status.get('pendingWorkloads', 0)} pending, {status.get('admittedWorkloads', 0)} admitted"
    return Check(f"LocalQueue {name}", PASSED, counts)


def quotas(cluster: Cluster) -> Iterator[Check]:
    """Yield the use of each ResourceQuota of the namespace."""
    found, _ = cluster.items(_QUOTAS)
    if not found:
        yield Check("ResourceQuota", PASSED, f"namespace {cluster.namespace} has none")
    for quota in found:
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        hard, used = status.get("hard") or {}, status.get("used") or {}
        full = [key for key in hard if parse_quantity(used.get(key, "0")) >= parse_quantity(hard[key])]
        shown = ", ".join(f"{key} {used.get(key, '0')} of {hard[key]}" for key in full or hard)
        command = f"kubectl edit resourcequota {name} -n {cluster.namespace}"
        if full:
            yield Check(
                f"ResourceQuota {name}",
                FAILED,
                f"{shown} used",
                f"Delete finished objects, or ask a cluster admin: {command}",
            )
        else:
            yield Check(f"ResourceQuota {name}", PASSED, f"{shown} used")


CHECKS: Final[Mapping[str, Callable[[Cluster], Iterator[Check]]]] = {
    "namespace": namespace,
    "Tunery's resources": resources,
    "permissions": permissions,
    "operator": operator,
    "GPUs": gpus,
    "Kueue": queues,
    "ResourceQuota": quotas,
}
"""The checks after that of the API server, in order."""


def run_checks(cluster: Cluster) -> Iterator[Check]:
    """Yield the result of every check. What the user may not read is unknown."""
    for name, check in CHECKS.items():
        try:
            yield from check(cluster)
        except TuneryError as error:
            if error.reason == "NotInstalled":
                yield Check(name, FAILED, error.message, error.remedy)
                return
            yield Check(name, UNKNOWN, error.message, "" if error.reason == "Forbidden" else error.remedy)
