"""Read a server's Deployment and its pods into views: the rollout, the containers, and the mounted API keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from tunery_api.kinds import Kind
from tunery_api.names import KIND_LABEL, OWNER_UID_LABEL, PLAN_ANNOTATION
from tunery_api.serving import NO_KEYS
from tunery_operator.observed.metadata import Key, controller_key, controller_of, parse_time
from tunery_operator.observed.pod import disruption_reason, unschedulable_message

API_KEYS_VOLUME: Final = "secret-api-keys"
"""Name of the volume that mounts the Secret of the API keys."""


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One Deployment."""

    name: str
    uid: str
    version: str
    owner_uid: str
    plan: str | None
    """Digest of the plan that it was built from."""
    wanted: int
    """spec.replicas."""
    generation: int
    observed_generation: int
    replicas: int
    """Existing pods, of old and new templates."""
    updated: int
    """Existing pods of the newest template."""
    ready: int
    stalled: str | None = None
    """Message of Progressing=False: why the rollout is stuck."""
    failure: str | None = None
    """Message of ReplicaFailure: why its pods cannot be created."""
    api_keys: str = NO_KEYS
    """The Secret with the API keys that pods of the newest template require."""
    namespace: str = ""
    owner: Key | None = None
    """The AdapterServer that controls it; None: another object does, or none."""
    deleting: bool = False

    @property
    def settled(self) -> bool:
        """Return whether the rollout is complete: spec.replicas pods exist, all of the newest template."""
        seen = self.observed_generation >= self.generation
        return seen and self.updated == self.replicas == self.wanted


def parse_deployment(body: Mapping[str, Any]) -> DeploymentView:
    """Return the view of a Deployment of the API server."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    progressing, failure = conditions.get("Progressing") or {}, conditions.get("ReplicaFailure") or {}
    wanted = spec.get("replicas")
    return DeploymentView(
        name=meta["name"],
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        owner_uid=controller_of(body).get("uid", ""),
        plan=(meta.get("annotations") or {}).get(PLAN_ANNOTATION),
        wanted=1 if wanted is None else int(wanted),
        generation=int(meta.get("generation") or 0),
        observed_generation=int(status.get("observedGeneration") or 0),
        replicas=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        stalled=_message(progressing) if progressing.get("status") == "False" else None,
        failure=_message(failure) if failure.get("status") == "True" else None,
        api_keys=api_keys_of((spec.get("template") or {}).get("spec") or {}),
        namespace=meta["namespace"],
        owner=controller_key(body),
        deleting="deletionTimestamp" in meta,
    )


def _message(condition: Mapping[str, Any]) -> str:
    return condition.get("message") or condition.get("reason") or "the cluster says no more"


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container of a pod, an init container too."""

    name: str
    running: bool = False
    started: bool = False
    """It runs, and its startup probe has passed."""
    restarts: int = 0
    waiting_reason: str | None = None
    waiting_message: str = ""
    exit_code: int | None = None
    """Of its newest end; None: it has not ended yet."""
    exit_reason: str | None = None
    exit_message: str = ""
    """Its termination message."""

    @property
    def stuck(self) -> bool:
        """Return whether the kubelet reports why it does not run."""
        return self.waiting_reason not in (None, "ContainerCreating", "PodInitializing")


class ReplicaSet(NamedTuple):
    """A ReplicaSet as a pod's owner reference names it, which may be wrong."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ServerPodView:
    """One pod of a server's Deployment."""

    name: str
    uid: str
    version: str
    replica_set: str
    """Name of the ReplicaSet that created it; labels can be forged."""
    replica_set_uid: str
    owner_uid: str
    """The uid of its AdapterServer, as its label states it."""
    created: str
    """RFC 3339 in UTC: sorts as text."""
    phase: str = "Pending"
    ready: bool = False
    """Its condition Ready, which kubelet and node controller set: it gets requests."""
    deleting: bool = False
    deletion_deadline: datetime | None = None
    """When its grace period ends, once it is being deleted."""
    node: str | None = None
    unschedulable: str | None = None
    """The scheduler's message while no node fits."""
    status_reason: str | None = None
    status_message: str = ""
    """The kubelet's message of an eviction."""
    disruption: str | None = None
    """The reason of the DisruptionTarget condition."""
    containers: tuple[ContainerView, ...] = ()
    """In the order in which they start."""
    api_keys: str = NO_KEYS
    """The Secret with the API keys that it requires."""
    namespace: str = ""

    @property
    def made_by(self) -> ReplicaSet:
        """The ReplicaSet that the pod names as its controller."""
        return ReplicaSet(self.namespace, self.replica_set, self.replica_set_uid)

    @property
    def unstarted(self) -> bool:
        """Return whether it is on a node, where no container has run yet or reports why not."""
        placed = self.node is not None and not self.deleting and not self.finished
        return placed and not any(item.running or item.exit_code is not None or item.stuck for item in self.containers)

    def container(self, name: str) -> ContainerView:
        """Return a container; an unknown one has not started."""
        return next((item for item in self.containers if item.name == name), ContainerView(name))

    @property
    def finished(self) -> bool:
        """Return whether the pod has ended."""
        return self.phase in ("Succeeded", "Failed")


def is_server_pod(body: Mapping[str, Any]) -> bool:
    """Return whether the labels of a pod state that it is a server's."""
    return (body["metadata"].get("labels") or {}).get(KIND_LABEL) == Kind.ADAPTERSERVER.singular


def parse_server_pod(body: Mapping[str, Any]) -> ServerPodView:
    """Return the view of a pod of the API server that belongs to a server's Deployment."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    controller, labels = controller_of(body), meta.get("labels") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    owned = controller.get("kind") == "ReplicaSet"
    return ServerPodView(
        name=meta["name"],
        namespace=sys.intern(meta["namespace"]),
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        replica_set=controller.get("name", "") if owned else "",
        replica_set_uid=controller.get("uid", "") if owned else "",
        owner_uid=labels.get(OWNER_UID_LABEL, ""),
        created=meta.get("creationTimestamp") or "",
        phase=status.get("phase") or "Pending",
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        deleting="deletionTimestamp" in meta,
        deletion_deadline=parse_time(meta.get("deletionTimestamp")),
        node=spec.get("nodeName"),
        unschedulable=unschedulable_message(conditions.get("PodScheduled") or {}),
        status_reason=status.get("reason"),
        status_message=status.get("message") or "",
        disruption=disruption_reason(conditions.get("DisruptionTarget") or {}),
        containers=tuple(_containers(status)),
        api_keys=api_keys_of(spec),
    )


def api_keys_of(pod_spec: Mapping[str, Any]) -> str:
    """Return the name of the Secret with the API keys that a server's pod requires; NO_KEYS: none."""
    mounted = (item for item in pod_spec.get("volumes") or () if item.get("name") == API_KEYS_VOLUME)
    return next(((item.get("secret") or {}).get("secretName", NO_KEYS) for item in mounted), NO_KEYS)


def _containers(status: Mapping[str, Any]) -> Iterator[ContainerView]:
    for field in ("initContainerStatuses", "containerStatuses"):
        for item in status.get(field) or ():
            yield _container(item)


def _container(item: Mapping[str, Any]) -> ContainerView:
    state, before = item.get("state") or {}, item.get("lastState") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or before.get("terminated") or {}
    return ContainerView(
        name=item.get("name", ""),
        running="running" in state,
        started="running" in state and bool(item.get("started")),
        restarts=int(item.get("restartCount") or 0),
        waiting_reason=waiting.get("reason"),
        waiting_message=waiting.get("message") or "",
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason"),
        exit_message=ended.get("message") or "",
    )
