"""Servers as the API server tells of them: their objects, Deployments and pods, and a memory that has seen many."""

from __future__ import annotations

from typing import Any

from tunery_api.kinds import Kind
from tunery_api.names import KIND_LABEL, OWNER_UID_LABEL
from tunery_api.serving import Desired
from tunery_operator.observed.deployment import ReplicaSet, parse_deployment
from tunery_operator.observed.metadata import Key
from tunery_operator.progress.auth import PodIdentity
from tunery_operator.runtime.cache import Cache

from kit.operator.api import Json
from kit.operator.cached import put_pod


def server(version: int, uid: str = "s1", phase: str | None = None, name: str = "support", **spec: Any) -> Json:
    meta = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version), "generation": 1}
    return {"metadata": meta, "spec": spec, "status": {"phase": phase} if phase else {}}


def deployment(
    version: int,
    uid: str = "d1",
    owner_uid: str = "s1",
    name: str = "support-server",
    owner: str = "support",
    **status: Any,
) -> Json:
    reference = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterServer", "name": owner, "uid": owner_uid}
    meta = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": {**meta, "ownerReferences": [{**reference, "controller": True}]}, "status": status}


def pod(version: int, uid: str = "p1", replica_set: str = "r1", owner_uid: str = "s1", ready: bool = False) -> Json:
    reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"name-{replica_set}", "uid": replica_set}
    meta = {
        "name": f"pod-{uid}",
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-31T11:00:00Z",
        "labels": {KIND_LABEL: "adapterserver", OWNER_UID_LABEL: owner_uid},
        "ownerReferences": [{**reference, "controller": True}],
    }
    return {"metadata": meta, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}}


def replica(index: int) -> PodIdentity:
    """Return one of the pods that `see_replicas` makes known."""
    return PodIdentity("team", f"pod-p{index}", f"p{index}")


def see_replicas(cache: Cache, count: int) -> None:
    """Have the operator's memory know so many replicas of one server, whose list has revision 1."""
    cache.put_object(Kind.ADAPTERSERVER, server(1))
    cache.deployments.put(parse_deployment(deployment(2)))
    cache.deployment_of[ReplicaSet("team", "name-r1", "r1")] = "d1"
    cache.state(Key(Kind.ADAPTERSERVER, "team", "support")).desired = Desired(revision=1)
    for index in range(count):
        put_pod(cache, pod(3, f"p{index}"))
