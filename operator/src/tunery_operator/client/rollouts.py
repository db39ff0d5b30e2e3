"""What is known of servers' Deployments and their pods; not safe for threads by itself, see cache.py.

Whose a pod is its labels say, and whoever may make pods may write labels. So a pod counts as a server's only once its
ReplicaSet was read and belongs to the Deployment that belongs to the server; until then nobody knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

from tunery_operator.client.versions import Tombstones, later
from tunery_operator.observed.deployment import DeploymentView, ServerPodView
from tunery_operator.observed.metadata import Key

FOREIGN = ""
"""Stands for the Deployment of a ReplicaSet that has none."""


class KnownDeployment(NamedTuple):
    """A Deployment, and the server that it says it belongs to."""

    key: Key
    view: DeploymentView


class KnownPod(NamedTuple):
    """A pod, and where it is."""

    namespace: str
    view: ServerPodView


class ReplicaSet(NamedTuple):
    """A ReplicaSet as a pod names it: a wrong name must not speak for the right one, nor another namespace's."""

    namespace: str
    name: str
    uid: str


class Rollouts:
    """Deployments by namespace and name, pods by uid."""

    def __init__(self) -> None:
        self._deployments: dict[tuple[str, str], KnownDeployment] = {}
        self._pods: dict[str, KnownPod] = {}
        self._of_owner: dict[str, set[str]] = {}
        """Uids of the pods whose labels name an owner, by its uid."""
        self._places: dict[str, tuple[str, str]] = {}
        """Namespaces and names of the Deployments, by uid."""
        self._deployment_of: dict[ReplicaSet, str] = {}
        """Uid of the Deployment by ReplicaSet, as far as somebody has asked; FOREIGN: it has none."""
        self._gone = Tombstones()

    # Deployments

    def see_deployment(self, key: Key, view: DeploymentView) -> bool:
        """Take note of a Deployment; tell whether anything has changed that a status needs."""
        place = key.namespace, view.name
        before = self._deployments.get(place)
        if view.uid in self._gone or (before is not None and not later(view.version, before.view.version)):
            return False
        if before is not None:
            self._places.pop(before.view.uid, None)
        self._deployments[place], self._places[view.uid] = KnownDeployment(key, view), place
        return before is None or not _same(before.view, view)

    def forget_deployment(self, namespace: str, name: str, uid: str) -> Key | None:
        """Forget a deleted Deployment; return the key of its server, None where it was not known."""
        self._gone.add(uid)
        known = self._deployments.get((namespace, name))
        if known is None or known.view.uid != uid:
            return None
        del self._deployments[namespace, name], self._places[uid]
        return known.key

    def missing_deployments(
        self, namespace: str | None, uids: Collection[str], version: str
    ) -> list[tuple[str, str, str]]:
        """Return namespace, name and uid of the Deployments that a complete list of that version did not have."""
        return [
            (place[0], known.view.name, known.view.uid)
            for place, known in self._deployments.items()
            if namespace in (None, place[0]) and known.view.uid not in uids and not later(known.view.version, version)
        ]

    def deployment(self, namespace: str, name: str) -> DeploymentView | None:
        """Return a Deployment, or None where none was seen."""
        known = self._deployments.get((namespace, name))
        return None if known is None else known.view

    # Pods

    def see_pod(self, namespace: str, view: ServerPodView) -> bool:
        """Take note of a pod; tell whether anything has changed that a status needs."""
        before = self._pods.get(view.uid)
        if view.uid in self._gone or (before is not None and not later(view.version, before.view.version)):
            return False
        if before is not None and before.view.owner_uid != view.owner_uid:
            self._unlist(before.view)
        self._pods[view.uid] = KnownPod(namespace, view)
        self._of_owner.setdefault(view.owner_uid, set()).add(view.uid)
        return before is None or not _same(before.view, view)

    def forget_pod(self, uid: str) -> ServerPodView | None:
        """Forget a pod that has ended or was deleted; return what was known of it."""
        self._gone.add(uid)
        known = self._pods.pop(uid, None)
        if known is None:
            return None
        self._unlist(known.view)
        asked = _replica_set(known)
        others = (self._pods[other] for other in self._of_owner.get(known.view.owner_uid, ()))
        if all(_replica_set(other) != asked for other in others):
            self._deployment_of.pop(asked, None)
        return known.view

    def _unlist(self, view: ServerPodView) -> None:
        uids = self._of_owner[view.owner_uid]
        uids.discard(view.uid)
        if not uids:
            del self._of_owner[view.owner_uid]

    def missing_pods(self, namespace: str | None, uids: Collection[str], version: str) -> list[tuple[str, str]]:
        """Return namespace and uid of the pods that a complete list of that version did not have."""
        return [
            (known.namespace, uid)
            for uid, known in self._pods.items()
            if namespace in (None, known.namespace) and uid not in uids and not later(known.view.version, version)
        ]

    def count(self) -> int:
        """Return the number of pods of all servers."""
        return len(self._pods)

    # Whose they are

    def prove(self, replica_set: ReplicaSet, deployment_uid: str) -> None:
        """Take note of the Deployment that a ReplicaSet belongs to, FOREIGN where it belongs to none."""
        self._deployment_of[replica_set] = deployment_uid

    def unproven(self, namespace: str, owner_uid: str) -> set[ReplicaSet]:
        """Return the ReplicaSets of pods that name an owner which nobody has asked for yet."""
        named = (_replica_set(pod) for pod in self._listed(namespace, owner_uid))
        return {each for each in named if each.uid and each not in self._deployment_of}

    def pods(self, namespace: str, owner_uid: str, deployment_uid: str) -> list[ServerPodView]:
        """Return the pods that belong to a server's Deployment."""
        listed = self._listed(namespace, owner_uid)
        return [pod.view for pod in listed if self._deployment_of.get(_replica_set(pod)) == deployment_uid]

    def _listed(self, namespace: str, owner_uid: str) -> list[KnownPod]:
        known = (self._pods[uid] for uid in self._of_owner.get(owner_uid, ()))
        return [pod for pod in known if pod.namespace == namespace]

    def owner_of_pod(self, namespace: str, name: str, uid: str) -> tuple[Key, str] | None:
        """Return the key and uid of the server that a pod belongs to, by its ReplicaSet and that one's Deployment."""
        pod = self._pod(namespace, name, uid)
        if pod is None:
            return None
        place = self._places.get(self._deployment_of.get(_replica_set(pod), FOREIGN))
        if place is None or place[0] != namespace:
            return None
        known = self._deployments[place]
        return known.key, known.view.owner_uid

    def is_unproven(self, namespace: str, name: str, uid: str) -> bool:
        """Tell whether nobody has asked yet whose a pod is that says it is a server's."""
        pod = self._pod(namespace, name, uid)
        return pod is not None and bool(pod.view.replica_set_uid) and _replica_set(pod) not in self._deployment_of

    def _pod(self, namespace: str, name: str, uid: str) -> KnownPod | None:
        pod = self._pods.get(uid)
        return pod if pod is not None and (pod.namespace, pod.view.name) == (namespace, name) else None


def _replica_set(pod: KnownPod) -> ReplicaSet:
    return ReplicaSet(pod.namespace, pod.view.replica_set, pod.view.replica_set_uid)


def _same(old: Any, new: Any) -> bool:
    """Tell whether two views differ in their version only."""
    return bool(dataclasses.replace(old, version=new.version) == new)
