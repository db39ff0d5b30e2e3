"""The children of a server: made if missing, patched where their plan is another, and otherwise left alone.

All but Deployments are not watched: what was read or written last is remembered, and read anew now and then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from tunery_api.names import PLAN_ANNOTATION
from tunery_api.serving import Desired
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
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.errors import StaleObject
from tunery_operator.manifests.server import build_desired, build_server, read_desired
from tunery_operator.observed.deployment import DeploymentView, parse_deployment
from tunery_operator.observed.job import controller_of
from tunery_operator.observed.owner import Owner
from tunery_operator.planning.adapterserver import ServerPlan
from tunery_operator.planning.clients import NOBODY_KNOWS, Mounts
from tunery_operator.planning.server_names import adapters_name, server_name

LOOK_SECONDS: Final = 60.0
"""After which the children that nobody watches are read anew: a Service that somebody deleted is back by then."""


def look_anew_if_due(services: ReconcileContext, owner: Owner) -> None:
    """Forget what is remembered of the children where that is old, or was contradicted."""
    servers, now = services.cache.servers, services.monotonic()
    looked_at = servers.looked_at(owner.key)
    if looked_at is None or now - looked_at >= LOOK_SECONDS or services.cache.is_stale(owner.key):
        servers.look_anew(owner.key, now)


# What is to be served


def served_before(services: ReconcileContext, owner: Owner) -> Desired:
    """Return what a server's own ConfigMap says; one that somebody has deleted is remembered. Raises ApiFailure."""
    servers, name = services.cache.servers, adapters_name(owner.key.name)
    known = servers.desired(owner.key)
    if known is not None and servers.held(owner.key, CONFIG_MAPS.plural, name) is not None:
        return known
    found = services.client.get(CONFIG_MAPS.get, owner.key.namespace, name)
    if found is None or controller_of(found).get("uid") != owner.uid:
        return known or Desired()
    _hold(services, owner, CONFIG_MAPS, found)
    before = read_desired(found)
    servers.set_desired(owner.key, before)
    return before


def mounted_keys(services: ReconcileContext, owner: Owner) -> Mounts:
    """Return which Secrets of API keys the pods of a server mount."""
    servers = services.cache.servers
    deployment = servers.deployment(owner.key.namespace, server_name(owner.key.name))
    if deployment is None or deployment.owner_uid != owner.uid:
        return NOBODY_KNOWS
    mounted = frozenset(pod.api_keys for pod in servers.pods(owner.key, owner.uid, deployment) if not pod.finished)
    return Mounts(mounted, deployment.api_keys if deployment.settled else None)


def renumbered(services: ReconcileContext, owner: Owner, before: Desired, desired: Desired) -> Desired:
    """Return what is to be served with a revision above all that a replica knows.

    Where the ConfigMap was deleted and the operator started anew, replicas know more than we do: they would take a
    lower number for old news.
    """
    highest = max((said.state.revision for said in services.cache.servers.said(owner.key).values()), default=0)
    if highest <= before.revision:
        return desired
    return desired.model_copy(update={"revision": highest + 1})


# All children


def ensure_children(services: ReconcileContext, plan: ServerPlan, desired: Desired) -> DeploymentView:
    """Bring all children to what the plan says, and return the Deployment.

    Raises NameTaken, AwaitingDeletion, FieldContested, StaleObject, OwnerGone, Rejected, ApiFailure.
    """
    built, owner = build_server(plan), plan.owner
    try:
        _ensure(services, owner, CONFIG_MAPS, built.config)
        _ensure(services, owner, CONFIG_MAPS, build_desired(plan, desired))
        services.cache.servers.set_desired(owner.key, desired)
        deployment = _ensure_deployment(services, owner, built.deployment)
        _ensure(services, owner, SERVICES, _stamped(built.service))
        _ensure(services, owner, DISRUPTION_BUDGETS, _stamped(built.disruption_budget))
        # Where the platform wants none any more, one that was made stays: no right to delete any is worth that.
        if built.network_policy is not None:
            _ensure(services, owner, NETWORK_POLICIES, _stamped(built.network_policy))
    except StaleObject:
        services.cache.mark_stale(owner.key)
        raise
    return deployment


def _ensure(services: ReconcileContext, owner: Owner, resource: Resource, built: Json) -> None:
    held = services.cache.servers.held(owner.key, resource.plural, built["metadata"]["name"])
    if held != _content(built):
        _hold(services, owner, resource, _brought(services, owner, resource, built))


def _ensure_deployment(services: ReconcileContext, owner: Owner, built: Json) -> DeploymentView:
    servers, name = services.cache.servers, built["metadata"]["name"]
    view = servers.deployment(owner.key.namespace, name)
    wanted = view is not None and (view.owner_uid, view.plan) == (owner.uid, _content(built))
    if view is None or not wanted or services.cache.is_stale(owner.key):
        view = _seen(services, _brought(services, owner, DEPLOYMENTS, built))
    replicas = built["spec"]["replicas"]
    if view.wanted == replicas:
        return view
    # By its uid alone: whatever else of it has changed meanwhile, this is how many there are to be.
    found = {"metadata": {"namespace": owner.key.namespace, "name": name, "uid": view.uid}}
    change = {"spec": {"replicas": replicas}}
    with services.quarrels.change(view.uid, "spec.replicas"):
        return _seen(services, apply.patch_child(services.client, DEPLOYMENTS, found, change))


def _seen(services: ReconcileContext, body: Json) -> DeploymentView:
    services.cache.servers.see_deployment(body)
    return parse_deployment(body)


def _brought(services: ReconcileContext, owner: Owner, resource: Resource, built: Json) -> Json:
    """Return a child as it is now, made or patched where that was needed."""
    client, name = services.client, built["metadata"]["name"]
    found = client.get(resource.get, owner.key.namespace, name)
    if found is None:
        found = apply.create_child(client, owner, resource, built)
    found = apply.adopt(found, owner, resource)
    if _content(found) == _content(built):
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


def _content(body: Mapping[str, Any]) -> str:
    """Return what tells whether a child is as it was built: what a ConfigMap says, else the digest of a plan."""
    if "data" in body:
        return _digest(body["data"])
    return str((body["metadata"].get("annotations") or {}).get(PLAN_ANNOTATION, ""))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _hold(services: ReconcileContext, owner: Owner, resource: Resource, body: Json) -> None:
    services.cache.servers.hold(owner.key, resource.plural, body["metadata"]["name"], _content(body))


# Whose the pods are


def prove_pods(services: ReconcileContext, owner: Owner) -> None:
    """Ask of each ReplicaSet that nobody has asked for whose it is: once. Raises ApiFailure."""
    servers = services.cache.servers
    for replica_set in servers.unproven(owner.key, owner.uid):
        found = services.client.get(GET_REPLICA_SET, replica_set.namespace, replica_set.name)
        same = found is not None and found["metadata"]["uid"] == replica_set.uid
        controller = controller_of(found) if found is not None and same else {}
        is_deployment = controller.get("kind") == DEPLOYMENTS.kind
        servers.prove(replica_set, str(controller.get("uid")) if is_deployment else FOREIGN)
