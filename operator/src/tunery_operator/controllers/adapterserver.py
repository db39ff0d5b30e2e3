"""Provide the reconcile of an AdapterServer: its adapters, its children, and the reports of its replicas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.errors import InvalidSpec
from tunery_api.names import PLAN_ANNOTATION
from tunery_api.serving import Desired
from tunery_api.validation import parse_adapterserver
from tunery_operator.client import apply
from tunery_operator.client.apply import merge_patch, status_change
from tunery_operator.client.client import Json
from tunery_operator.client.permissions import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    GET_REPLICA_SET,
    NETWORK_POLICIES,
    SERVICES,
    Resource,
)
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject, chart_values, find_object
from tunery_operator.controllers.rejections import blocked_by, rejected_by
from tunery_operator.controllers.status_writer import write_change, write_delay
from tunery_operator.controllers.warnings import server_warnings
from tunery_operator.errors import (
    ApiFailure,
    AwaitingDeletion,
    FieldContested,
    NameTaken,
    Rejected,
    StaleObject,
)
from tunery_operator.manifests.server import build_desired, build_server, read_desired
from tunery_operator.observed.deployment import DeploymentView, parse_deployment
from tunery_operator.observed.metadata import Key, Owner, controller_of
from tunery_operator.planning.adapterserver import ServerPlan, adapters_name, plan_server, server_name
from tunery_operator.planning.desired import resolve
from tunery_operator.planning.resolution import UNKNOWN_MOUNTS, ApiKeyMounts
from tunery_operator.runtime.workqueue import DONE, Requeue, earliest
from tunery_operator.status.server.compute import compute_server_status
from tunery_operator.status.server.snapshot import ReplicaReport, ServerSnapshot

_FREQUENT: Final = frozenset({"adapters", "adapterCounts", "adaptersText", "replicaStatuses", "lastChangeTime"})
"""Fields that replicas change as they load one adapter after the other: written at most every few seconds."""


def reconcile_server(context: ReconcileContext, key: Key) -> Requeue:
    """Reconcile one server, and return when to reconcile it again; idempotent."""
    obj = find_object(context, key)
    if obj is None:
        context.backoff.reset(key)
        return DONE
    _expire_remembered(context, obj.owner)
    snapshot, retry_in = _apply_and_retry(context, obj)
    context.cache.state(key).stale = False
    return _update_status(context, obj, _with_replicas(context, snapshot), retry_in)


def _apply_and_retry(context: ReconcileContext, obj: ManagedObject) -> tuple[ServerSnapshot, float | None]:
    """Return the snapshot after the steps that succeeded, with what blocks the next one, and the seconds until a retry.

    None: nothing blocks, or a retry would not help.
    """
    key = obj.owner.key
    snapshot = ServerSnapshot(
        obj.owner,
        replicas=obj.replicas,
        watching_since=context.acting_since,
        certificate_fault=context.certificate_fault(),
        platform=chart_values(context, obj),
    )
    try:
        for step in (_verify_pod_owners, _parse, _resolve, _apply_children):
            snapshot = step(context, obj, snapshot)
    except InvalidSpec as error:
        context.backoff.reset(key)
        return _invalid(obj, snapshot, error), None
    except Rejected as error:
        context.backoff.reset(key)
        return replace(snapshot, **rejected_by(obj, snapshot.platform, error)), None
    except (ApiFailure, FieldContested, NameTaken, AwaitingDeletion) as error:
        wait = context.backoff.next(key)
        return replace(snapshot, **blocked_by(error)), max(wait, error.retry_after or 0.0)
    context.backoff.reset(key)
    return snapshot, None


def _verify_pod_owners(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Read each unknown ReplicaSet of a pod with this server's label once: is its Deployment this server's?

    Also for a server whose spec is invalid. Raises ApiFailure.
    """
    cache, owner = context.cache, obj.owner
    pods = cache.server_pods.by_index("owner", (owner.key.namespace, owner.uid))
    named = {pod.made_by for pod in pods if pod.replica_set_uid}
    for replica_set in [each for each in named if each not in cache.deployment_of]:
        found = context.client.get(GET_REPLICA_SET, replica_set.namespace, replica_set.name)
        same = found is not None and found["metadata"]["uid"] == replica_set.uid
        controller = controller_of(found) if found is not None and same else {}
        is_deployment = controller.get("kind") == DEPLOYMENTS.kind
        cache.deployment_of[replica_set] = str(controller.get("uid")) if is_deployment else ""
    return snapshot


def _parse(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    return replace(snapshot, spec=parse_adapterserver(obj.body))


def _resolve(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Resolve which adapters to serve."""
    spec, owner = _spec(snapshot), obj.owner
    before = _current_desired(context, owner)
    resolution = resolve(spec, context.cache.published_results(owner.key), before, _mounted_keys(context, owner))
    desired = _renumber(context, owner, before, resolution.desired)
    return replace(snapshot, resolution=resolution._replace(desired=desired))


def _apply_children(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Create or update the children."""
    plan = plan_server(_spec(snapshot), obj.owner, context.platform)
    desired = snapshot.resolution.desired if snapshot.resolution is not None else Desired()
    return replace(snapshot, deployment=_ensure_children(context, plan, desired))


def _spec(snapshot: ServerSnapshot) -> AdapterServerSpec:
    assert snapshot.spec is not None, "parsed before"  # noqa: S101 - for the type checker
    return snapshot.spec


def _invalid(obj: ManagedObject, snapshot: ServerSnapshot, error: InvalidSpec) -> ServerSnapshot:
    """Return the snapshot with the errors of a spec; of an accepted one as what the platform's settings forbid now."""
    if snapshot.spec is not None and obj.is_validated():
        return replace(snapshot, planning_errors=error.errors)
    return replace(snapshot, errors=error.errors)


def _with_replicas(context: ReconcileContext, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Return the snapshot with the Deployment, its pods, and their reports."""
    cache, owner = context.cache, snapshot.owner
    deployment = snapshot.deployment or cache.deployments.get(owner.key.namespace, server_name(owner.key.name))
    if deployment is not None and deployment.owner_uid != owner.uid:
        deployment = None
    pods = cache.replicas(owner.key, owner.uid, deployment)
    known = cache.state(owner.key).reports
    reports = {pod.uid: ReplicaReport(known[pod.uid].state, known[pod.uid].at) for pod in pods if pod.uid in known}
    warnings = server_warnings(context.warnings, context.client, owner.key.namespace, pods, context.now())
    return replace(snapshot, deployment=deployment, pods=pods, reports=reports, warnings=warnings)


def _update_status(
    context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot, retry_in: float | None
) -> Requeue:
    """Compute the status, write it if it changed, and record events; `retry_in` is the seconds until a retry."""
    outcome = compute_server_status(snapshot, obj.status, context.now())
    change = status_change(obj.body, outcome.status)
    later = earliest(retry_in, outcome.requeue_after, RESYNC_SECONDS)
    wait = write_delay(context, obj, change, _FREQUENT) if change else 0.0
    if not change or wait > 0:
        return Requeue(earliest(later, wait if change else None))
    keys_to_requeue = write_change(context, obj, change)
    context.events.record(obj.owner, outcome.events)
    return Requeue(later, keys_to_requeue)


RESYNC_SECONDS: Final = 60.0
"""Period in which unwatched children are read: a deleted Service is back after it."""


def _expire_remembered(context: ReconcileContext, owner: Owner) -> None:
    """Forget the remembered children if they are due for a read, or a write found them changed."""
    state, now = context.cache.state(owner.key), context.monotonic()
    if state.stale or state.children_read_at is None or now - state.children_read_at >= RESYNC_SECONDS:
        state.children, state.children_read_at = {}, now


# Adapters to serve


def _current_desired(context: ReconcileContext, owner: Owner) -> Desired:
    """Return the adapters in the server's ConfigMap; a deleted one is remembered. Raises ApiFailure."""
    state, name = context.cache.state(owner.key), adapters_name(owner.key.name)
    known = state.desired
    if known is not None and (CONFIG_MAPS.plural, name) in state.children:
        return known
    found = context.client.get(CONFIG_MAPS.get, owner.key.namespace, name)
    if found is None or controller_of(found).get("uid") != owner.uid:
        return known or Desired()
    _remember(context, owner, CONFIG_MAPS, found)
    state.desired = read_desired(found)
    return state.desired


def _mounted_keys(context: ReconcileContext, owner: Owner) -> ApiKeyMounts:
    """Return which Secrets with API keys the pods of a server mount."""
    cache = context.cache
    deployment = cache.deployments.get(owner.key.namespace, server_name(owner.key.name))
    if deployment is None or deployment.owner_uid != owner.uid:
        return UNKNOWN_MOUNTS
    mounted = frozenset(pod.api_keys for pod in cache.replicas(owner.key, owner.uid, deployment) if not pod.finished)
    return ApiKeyMounts(mounted, deployment.api_keys if deployment.settled else None)


def _renumber(context: ReconcileContext, owner: Owner, before: Desired, desired: Desired) -> Desired:
    """Return the adapters to serve with a revision above each that a replica has reported.

    After the ConfigMap was deleted and the operator restarted, replicas have a higher revision, and ignore lower ones.
    """
    highest = max((report.state.revision for report in context.cache.state(owner.key).reports.values()), default=0)
    if highest <= before.revision:
        return desired
    return desired.model_copy(update={"revision": highest + 1})


# All children


def _ensure_children(context: ReconcileContext, plan: ServerPlan, desired: Desired) -> DeploymentView:
    """Create or update all children, and return the Deployment.

    Raises NameTaken, AwaitingDeletion, FieldContested, StaleObject, OwnerGone, Rejected, ApiFailure.
    """
    built, owner = build_server(plan), plan.owner
    try:
        _ensure_child(context, owner, CONFIG_MAPS, built.config)
        _ensure_child(context, owner, CONFIG_MAPS, build_desired(plan, desired))
        context.cache.state(owner.key).desired = desired
        deployment = _ensure_deployment(context, owner, built.deployment)
        _ensure_child(context, owner, SERVICES, _stamped(built.service))
        _ensure_child(context, owner, DISRUPTION_BUDGETS, _stamped(built.disruption_budget))
        # A NetworkPolicy that the settings no longer want stays: the operator has no permission to delete one.
        if built.network_policy is not None:
            _ensure_child(context, owner, NETWORK_POLICIES, _stamped(built.network_policy))
    except StaleObject:
        context.cache.state(owner.key).stale = True
        raise
    return deployment


def _ensure_child(context: ReconcileContext, owner: Owner, resource: Resource, built: Json) -> None:
    known = context.cache.state(owner.key).children.get((resource.plural, built["metadata"]["name"]))
    if known != _fingerprint(built):
        _remember(context, owner, resource, _applied(context, owner, resource, built))


def _ensure_deployment(context: ReconcileContext, owner: Owner, built: Json) -> DeploymentView:
    cache, name = context.cache, built["metadata"]["name"]
    view = cache.deployments.get(owner.key.namespace, name)
    wanted = view is not None and (view.owner_uid, view.plan) == (owner.uid, _fingerprint(built))
    if view is None or not wanted or context.cache.state(owner.key).stale:
        view = _cached(context, _applied(context, owner, DEPLOYMENTS, built))
    replicas = built["spec"]["replicas"]
    if view.wanted == replicas:
        return view
    # Precondition on the uid alone: any other change of the Deployment may stay.
    found = {"metadata": {"namespace": owner.key.namespace, "name": name, "uid": view.uid}}
    change = {"spec": {"replicas": replicas}}
    with context.conflicts.change(view.uid, "spec.replicas"):
        return _cached(context, apply.patch_child(context.client, DEPLOYMENTS, found, change))


def _cached(context: ReconcileContext, body: Json) -> DeploymentView:
    view = parse_deployment(body)
    context.cache.deployments.put(view)
    return view


def _applied(context: ReconcileContext, owner: Owner, resource: Resource, built: Json) -> Json:
    """Return a child, created or patched if needed."""
    client, name = context.client, built["metadata"]["name"]
    found = client.get(resource.get, owner.key.namespace, name)
    if found is None:
        found = apply.create_child(client, owner, resource, built)
    found = apply.adopt(found, owner, resource)
    if _fingerprint(found) == _fingerprint(built):
        return found
    return apply.patch_child(client, resource, found, _change(found, built))


def _change(found: Json, built: Json) -> Json:
    """Return the merge patch from a child to what is built; labels and annotations of others stay."""
    meta = built["metadata"]
    change: Json = {"metadata": {"labels": meta["labels"], "annotations": meta.get("annotations") or {}}}
    if "data" in built:
        return {**change, "data": merge_patch(found.get("data") or {}, built["data"])}
    if built["kind"] != DEPLOYMENTS.kind:
        return {**change, "spec": built["spec"]}
    # The patch also removes fields; the API server restores its own defaults among them.
    template = merge_patch(found["spec"]["template"], built["spec"]["template"])
    return {**change, "spec": {**built["spec"], "template": template}}


def _stamped(built: Json) -> Json:
    """Return a child with the digest of what it is built from."""
    meta = built["metadata"]
    annotations = {**(meta.get("annotations") or {}), PLAN_ANNOTATION: _digest(built)}
    return {**built, "metadata": {**meta, "annotations": annotations}}


def _fingerprint(body: Mapping[str, Any]) -> str:
    """Return what changes with what a child is built from: the digest of a ConfigMap's data, or of the plan."""
    if "data" in body:
        return _digest(body["data"])
    return str((body["metadata"].get("annotations") or {}).get(PLAN_ANNOTATION, ""))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _remember(context: ReconcileContext, owner: Owner, resource: Resource, body: Json) -> None:
    state = context.cache.state(owner.key)
    state.children = {**state.children, (resource.plural, body["metadata"]["name"]): _fingerprint(body)}
