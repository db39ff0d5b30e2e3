"""Provide the reconcile of an AdapterServer: its adapters, its children, and the reports of its replicas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.failures import Failure
from tunery_api.names import PLAN_ANNOTATION
from tunery_api.reasons import FailureReason
from tunery_api.serving import Desired
from tunery_api.validation import parse_adapterserver
from tunery_operator.client import apply
from tunery_operator.client.client import Json
from tunery_operator.client.merge_patch import merge_patch
from tunery_operator.client.rbac import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    GET_REPLICA_SET,
    NETWORK_POLICIES,
    SERVICES,
    Resource,
)
from tunery_operator.client.rollouts import FOREIGN
from tunery_operator.client.status import status_change
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject, chart_values, find_object
from tunery_operator.controllers.rejections import ambiguous_rejection, field_of, rejection_of
from tunery_operator.controllers.status_writer import write_delay, write_down
from tunery_operator.controllers.warnings import server_warnings
from tunery_operator.errors import (
    ApiFailure,
    AwaitingDeletion,
    FieldContested,
    NameTaken,
    OperatorError,
    Rejected,
    StaleObject,
)
from tunery_operator.manifests.server import build_desired, build_server, read_desired
from tunery_operator.observed.deployment import DeploymentView, parse_deployment
from tunery_operator.observed.metadata import Key, Owner, controller_of
from tunery_operator.planning.adapterserver import ServerPlan, adapters_name, plan_server, server_name
from tunery_operator.planning.desired import resolve
from tunery_operator.planning.resolution import NOBODY_KNOWS, Mounts
from tunery_operator.runtime.workqueue import DONE, Requeue, earliest
from tunery_operator.status.server.compute import compute_server_status
from tunery_operator.status.server.snapshot import Heard, ServerSnapshot

_FREQUENT: Final = frozenset({"adapters", "adapterCounts", "adaptersText", "replicaStatuses", "lastChangeTime"})
"""Fields that replicas change as they load one adapter after the other: written at most every few seconds."""


def reconcile_server(context: ReconcileContext, key: Key) -> Requeue:
    """Bring one server a step further; gives the same answer however often it is asked."""
    obj = find_object(context, key)
    if obj is None:
        context.backoff.reset(key)
        return DONE
    _expire_remembered(context, obj.owner)
    snapshot, retry_in = _apply_and_retry(context, obj)
    context.cache.mark_fresh(key)
    return _update_status(context, obj, _with_replicas(context, snapshot), retry_in)


def _apply_and_retry(context: ReconcileContext, obj: ManagedObject) -> tuple[ServerSnapshot, float | None]:
    """Return the snapshot after as many steps as went well, and what stood in the way of the next.

    And when to try that again, in seconds; None: nothing did, or trying again would not help.
    """
    key = obj.owner.key
    snapshot = ServerSnapshot(
        obj.owner,
        replicas=obj.replicas,
        watching_since=context.acting_since,
        distrust=context.distrust(),
        platform=chart_values(context, obj),
    )
    try:
        for step in (_prove, _parse, _resolve, _apply_children):
            snapshot = step(context, obj, snapshot)
    except InvalidSpec as error:
        context.backoff.reset(key)
        return _invalid(obj, snapshot, error), None
    except Rejected as error:
        context.backoff.reset(key)
        return _rejected(obj, snapshot, error), None
    except (ApiFailure, FieldContested, NameTaken, AwaitingDeletion) as error:
        wait = context.backoff.next(key)
        return _hampered(snapshot, error), max(wait, error.retry_after or 0.0)
    context.backoff.reset(key)
    return snapshot, None


def _prove(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Find out whose the pods are that say they are this server's: also of one whose spec is not valid."""
    prove_pods(context, obj.owner)
    return snapshot


def _parse(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    return replace(snapshot, spec=parse_adapterserver(obj.body))


def _resolve(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Find out what is to be served."""
    spec, owner = _spec(snapshot), obj.owner
    before = _current_desired(context, owner)
    resolution = resolve(spec, context.cache.servers.offers(owner.key), before, _mounted_keys(context, owner))
    desired = _renumbered(context, owner, before, resolution.desired)
    return replace(snapshot, resolution=resolution._replace(desired=desired))


def _apply_children(context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Bring the children to what the spec says."""
    plan = plan_server(_spec(snapshot), obj.owner, context.platform)
    desired = snapshot.resolution.desired if snapshot.resolution is not None else Desired()
    return replace(snapshot, deployment=_ensure_children(context, plan, desired))


def _spec(snapshot: ServerSnapshot) -> AdapterServerSpec:
    assert snapshot.spec is not None, "it was judged before"  # noqa: S101 - a fact of this file, for the type checker
    return snapshot.spec


def _invalid(obj: ManagedObject, snapshot: ServerSnapshot, error: InvalidSpec) -> ServerSnapshot:
    """Tell what is wrong with a spec, and what only today's settings find wrong with one that was good before."""
    if snapshot.spec is not None and obj.is_validated():
        return replace(snapshot, unplannable=error.errors)
    return replace(snapshot, errors=error.errors)


def _rejected(obj: ManagedObject, snapshot: ServerSnapshot, error: Rejected) -> ServerSnapshot:
    field = field_of(obj, error)
    if field is not None:
        return replace(snapshot, errors=(FieldError(field, str(error)),))
    return replace(snapshot, rejection=ambiguous_rejection(obj, snapshot.platform, error))


def _hampered(snapshot: ServerSnapshot, error: OperatorError) -> ServerSnapshot:
    if isinstance(error, ApiFailure):
        return replace(snapshot, rejection=rejection_of(error))
    if isinstance(error, FieldContested):
        return replace(snapshot, rejection=Failure(reason=FailureReason.FIELD_CONTESTED, message=str(error)))
    if isinstance(error, NameTaken):
        return replace(snapshot, conflict=str(error))
    return replace(snapshot, waiting_for=str(error))


def _with_replicas(context: ReconcileContext, snapshot: ServerSnapshot) -> ServerSnapshot:
    """Return the snapshot with the Deployment, its pods, and what they reported."""
    servers, owner = context.cache.servers, snapshot.owner
    deployment = snapshot.deployment or servers.deployment(owner.key.namespace, server_name(owner.key.name))
    if deployment is not None and deployment.owner_uid != owner.uid:
        deployment = None
    pods = servers.pods(owner.key, owner.uid, deployment)
    said = servers.said(owner.key)
    reports = {pod.uid: Heard(said[pod.uid].state, said[pod.uid].at) for pod in pods if pod.uid in said}
    warnings = server_warnings(context.warnings, context.client, owner.key.namespace, pods, context.now())
    return replace(snapshot, deployment=deployment, pods=pods, reports=reports, warnings=warnings)


def _update_status(
    context: ReconcileContext, obj: ManagedObject, snapshot: ServerSnapshot, retry_in: float | None
) -> Requeue:
    """Bring the status up to date; `retry_in` is when to try again what could not be done."""
    outcome = compute_server_status(snapshot, obj.status, context.now())
    change = status_change(obj.body, outcome.status)
    later = earliest(retry_in, outcome.requeue_after, RESYNC_SECONDS)
    wait = write_delay(context, obj, change, _FREQUENT) if change else 0.0
    if not change or wait > 0:
        return Requeue(earliest(later, wait if change else None))
    woken = write_down(context, obj, change)
    context.events.record(obj.owner, outcome.events)
    return Requeue(later, woken)


RESYNC_SECONDS: Final = 60.0
"""After which the children that nobody watches are read anew: a Service that somebody deleted is back by then."""


def _expire_remembered(context: ReconcileContext, owner: Owner) -> None:
    """Forget what is remembered of the children where that is old, or was contradicted."""
    servers, now = context.cache.servers, context.monotonic()
    looked_at = servers.looked_at(owner.key)
    if looked_at is None or now - looked_at >= RESYNC_SECONDS or context.cache.is_stale(owner.key):
        servers.look_anew(owner.key, now)


# What is to be served


def _current_desired(context: ReconcileContext, owner: Owner) -> Desired:
    """Return what a server's own ConfigMap says; one that somebody has deleted is remembered. Raises ApiFailure."""
    servers, name = context.cache.servers, adapters_name(owner.key.name)
    known = servers.desired(owner.key)
    if known is not None and servers.held(owner.key, CONFIG_MAPS.plural, name) is not None:
        return known
    found = context.client.get(CONFIG_MAPS.get, owner.key.namespace, name)
    if found is None or controller_of(found).get("uid") != owner.uid:
        return known or Desired()
    _remember(context, owner, CONFIG_MAPS, found)
    before = read_desired(found)
    servers.set_desired(owner.key, before)
    return before


def _mounted_keys(context: ReconcileContext, owner: Owner) -> Mounts:
    """Return which Secrets of API keys the pods of a server mount."""
    servers = context.cache.servers
    deployment = servers.deployment(owner.key.namespace, server_name(owner.key.name))
    if deployment is None or deployment.owner_uid != owner.uid:
        return NOBODY_KNOWS
    mounted = frozenset(pod.api_keys for pod in servers.pods(owner.key, owner.uid, deployment) if not pod.finished)
    return Mounts(mounted, deployment.api_keys if deployment.settled else None)


def _renumbered(context: ReconcileContext, owner: Owner, before: Desired, desired: Desired) -> Desired:
    """Return what is to be served with a revision above all that a replica knows.

    Where the ConfigMap was deleted and the operator started anew, replicas know more than we do: they would take a
    lower number for old news.
    """
    highest = max((said.state.revision for said in context.cache.servers.said(owner.key).values()), default=0)
    if highest <= before.revision:
        return desired
    return desired.model_copy(update={"revision": highest + 1})


# All children


def _ensure_children(context: ReconcileContext, plan: ServerPlan, desired: Desired) -> DeploymentView:
    """Bring all children to what the plan says, and return the Deployment.

    Raises NameTaken, AwaitingDeletion, FieldContested, StaleObject, OwnerGone, Rejected, ApiFailure.
    """
    built, owner = build_server(plan), plan.owner
    try:
        _ensure_child(context, owner, CONFIG_MAPS, built.config)
        _ensure_child(context, owner, CONFIG_MAPS, build_desired(plan, desired))
        context.cache.servers.set_desired(owner.key, desired)
        deployment = _ensure_deployment(context, owner, built.deployment)
        _ensure_child(context, owner, SERVICES, _stamped(built.service))
        _ensure_child(context, owner, DISRUPTION_BUDGETS, _stamped(built.disruption_budget))
        # Where the platform wants none any more, one that was made stays: no right to delete any is worth that.
        if built.network_policy is not None:
            _ensure_child(context, owner, NETWORK_POLICIES, _stamped(built.network_policy))
    except StaleObject:
        context.cache.mark_stale(owner.key)
        raise
    return deployment


def _ensure_child(context: ReconcileContext, owner: Owner, resource: Resource, built: Json) -> None:
    held = context.cache.servers.held(owner.key, resource.plural, built["metadata"]["name"])
    if held != _fingerprint(built):
        _remember(context, owner, resource, _applied(context, owner, resource, built))


def _ensure_deployment(context: ReconcileContext, owner: Owner, built: Json) -> DeploymentView:
    servers, name = context.cache.servers, built["metadata"]["name"]
    view = servers.deployment(owner.key.namespace, name)
    wanted = view is not None and (view.owner_uid, view.plan) == (owner.uid, _fingerprint(built))
    if view is None or not wanted or context.cache.is_stale(owner.key):
        view = _seen(context, _applied(context, owner, DEPLOYMENTS, built))
    replicas = built["spec"]["replicas"]
    if view.wanted == replicas:
        return view
    # By its uid alone: whatever else of it has changed meanwhile, this is how many there are to be.
    found = {"metadata": {"namespace": owner.key.namespace, "name": name, "uid": view.uid}}
    change = {"spec": {"replicas": replicas}}
    with context.conflicts.change(view.uid, "spec.replicas"):
        return _seen(context, apply.patch_child(context.client, DEPLOYMENTS, found, change))


def _seen(context: ReconcileContext, body: Json) -> DeploymentView:
    context.cache.servers.see_deployment(body)
    return parse_deployment(body)


def _applied(context: ReconcileContext, owner: Owner, resource: Resource, built: Json) -> Json:
    """Return a child as it is now, made or patched where that was needed."""
    client, name = context.client, built["metadata"]["name"]
    found = client.get(resource.get, owner.key.namespace, name)
    if found is None:
        found = apply.create_child(client, owner, resource, built)
    found = apply.adopt(found, owner, resource)
    if _fingerprint(found) == _fingerprint(built):
        return found
    return apply.patch_child(client, resource, found, _change(found, built))


def _change(found: Json, built: Json) -> Json:
    """Return the merge patch from a child as it is to what is built; labels and annotations of others stay."""
    meta = built["metadata"]
    change: Json = {"metadata": {"labels": meta["labels"], "annotations": meta.get("annotations") or {}}}
    if "data" in built:
        return {**change, "data": merge_patch(found.get("data") or {}, built["data"])}
    if built["kind"] != DEPLOYMENTS.kind:
        return {**change, "spec": built["spec"]}
    # What a template says no more must go; what is taken away of the API server's own defaults, it puts back.
    template = merge_patch(found["spec"]["template"], built["spec"]["template"])
    return {**change, "spec": {**built["spec"], "template": template}}


def _stamped(built: Json) -> Json:
    """Return a child with a digest of what it is built from."""
    meta = built["metadata"]
    annotations = {**(meta.get("annotations") or {}), PLAN_ANNOTATION: _digest(built)}
    return {**built, "metadata": {**meta, "annotations": annotations}}


def _fingerprint(body: Mapping[str, Any]) -> str:
    """Return what tells whether a child is as it was built: what a ConfigMap says, else the digest of a plan."""
    if "data" in body:
        return _digest(body["data"])
    return str((body["metadata"].get("annotations") or {}).get(PLAN_ANNOTATION, ""))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _remember(context: ReconcileContext, owner: Owner, resource: Resource, body: Json) -> None:
    context.cache.servers.hold(owner.key, resource.plural, body["metadata"]["name"], _fingerprint(body))


# Whose the pods are


def prove_pods(context: ReconcileContext, owner: Owner) -> None:
    """Ask of each ReplicaSet that nobody has asked for whose it is: once. Raises ApiFailure."""
    servers = context.cache.servers
    for replica_set in servers.unproven(owner.key, owner.uid):
        found = context.client.get(GET_REPLICA_SET, replica_set.namespace, replica_set.name)
        same = found is not None and found["metadata"]["uid"] == replica_set.uid
        controller = controller_of(found) if found is not None and same else {}
        is_deployment = controller.get("kind") == DEPLOYMENTS.kind
        servers.prove(replica_set, str(controller.get("uid")) if is_deployment else FOREIGN)
