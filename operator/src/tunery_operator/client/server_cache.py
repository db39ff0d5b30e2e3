"""What the watches told of servers: what objects offer them, their Deployments, their pods and what these report.

A part of the cache, under the cache's lock; see cache.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from tunery_api.kinds import Kind
from tunery_api.names import KIND_LABEL
from tunery_api.serving import SILENT_SECONDS, Desired, ReplicaState
from tunery_operator.client.offers import OfferKey
from tunery_operator.client.owner_key import owner_key
from tunery_operator.client.owners import Owners
from tunery_operator.client.rollouts import ReplicaSet, Rollouts
from tunery_operator.client.serving import ReplicaReportRecord, Serving
from tunery_operator.observed.deployment import DeploymentView, ServerPodView, parse_deployment, parse_server_pod
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.published_result import PublishedResult


def is_server_pod(body: Mapping[str, Any]) -> bool:
    """Tell whether a pod says of itself that it is a server's."""
    return (body["metadata"].get("labels") or {}).get(KIND_LABEL) == Kind.ADAPTERSERVER.singular


class ServerCache:
    """The servers' part of the operator's memory."""

    def __init__(self, lock: threading.RLock, owners: Owners, clock: Callable[[], float]) -> None:
        self._lock = lock
        self._owners = owners
        self._rollouts = Rollouts()
        self._clock = clock

    def offers(self, key: Key) -> dict[OfferKey, PublishedResult]:
        """Return the LoRAJobs and AdapterMerges that a server names or selects, as far as they exist."""
        with self._lock:
            return self._owners.offers.of(key)

    def names(self, namespace: str) -> list[str]:
        """Return the names of all servers of a namespace, as far as they were seen."""
        with self._lock:
            return self._owners.offers.servers(namespace)

    # Deployments

    def see_deployment(self, body: dict[str, Any]) -> set[Key]:
        """Take note of a Deployment; return the keys to reconcile. One that is on its way out counts as gone."""
        key = owner_key(body)
        if key is None or "deletionTimestamp" in body["metadata"]:
            return self.forget_deployment(body)
        view = parse_deployment(body)
        with self._lock:
            return self._known([key]) if self._rollouts.see_deployment(key, view) else set()

    def forget_deployment(self, body: dict[str, Any]) -> set[Key]:
        """Forget a deleted Deployment; return the keys to reconcile."""
        meta = body["metadata"]
        with self._lock:
            return self._known([self._rollouts.forget_deployment(meta["namespace"], meta["name"], meta["uid"])])

    def retain_deployments(self, namespace: str | None, uids: Collection[str], version: str) -> set[Key]:
        """Forget the Deployments that a complete list of that version did not have; return the keys to reconcile."""
        with self._lock:
            missing = self._rollouts.missing_deployments(namespace, uids, version)
            return self._known([self._rollouts.forget_deployment(*each) for each in missing])

    def deployment(self, namespace: str, name: str) -> DeploymentView | None:
        """Return a Deployment, or None where none was seen."""
        with self._lock:
            return self._rollouts.deployment(namespace, name)

    def _known(self, keys: Iterable[Key | None]) -> set[Key]:
        return {key for key in keys if key is not None and self._owners.get(key) is not None}

    # Pods

    def see_pod(self, body: dict[str, Any]) -> set[Key]:
        """Take note of a pod; return the keys to reconcile."""
        namespace, view = body["metadata"]["namespace"], parse_server_pod(body)
        with self._lock:
            return self._named_by(namespace, view) if self._rollouts.see_pod(namespace, view) else set()

    def forget_pod(self, body: dict[str, Any]) -> set[Key]:
        """Take note that a pod left the watch, ended or deleted; return the keys to reconcile."""
        with self._lock:
            return self._leave(body["metadata"]["namespace"], body["metadata"]["uid"])

    def retain_pods(self, namespace: str | None, uids: Collection[str], version: str) -> set[Key]:
        """Take note that the pods which a complete list did not have left the watch; return the keys to reconcile."""
        with self._lock:
            missing = self._rollouts.missing_pods(namespace, uids, version)
            return {key for where, uid in missing for key in self._leave(where, uid)}

    def _leave(self, namespace: str, uid: str) -> set[Key]:
        view = self._rollouts.forget_pod(uid)
        if view is None:
            return set()
        keys = self._named_by(namespace, view)
        for key in keys:
            serving = self._serving(key)
            if serving is not None:
                serving.said.pop(uid, None)
        return keys

    def _named_by(self, namespace: str, view: ServerPodView) -> set[Key]:
        """Return the server that a pod's labels name; they may be wrong, and then a look at it is in vain."""
        key = self._owners.key_of(view.owner_uid)
        return {key} if key is not None and key.namespace == namespace else set()

    def pods(self, key: Key, uid: str, deployment: DeploymentView | None) -> tuple[ServerPodView, ...]:
        """Return the pods of a server's Deployment, oldest first."""
        if deployment is None:
            return ()
        with self._lock:
            found = self._rollouts.pods(key.namespace, uid, deployment.uid)
        return tuple(sorted(found, key=lambda pod: (pod.created, pod.name)))

    def unproven(self, key: Key, uid: str) -> set[ReplicaSet]:
        """Return the ReplicaSets of a server's pods, as their labels say, that are still to be asked for."""
        with self._lock:
            return self._rollouts.unproven(key.namespace, uid)

    def prove(self, replica_set: ReplicaSet, deployment_uid: str) -> None:
        """Take note of the Deployment that a ReplicaSet belongs to; the empty string: to none."""
        with self._lock:
            self._rollouts.prove(replica_set, deployment_uid)

    def owner_of_pod(self, namespace: str, name: str, uid: str) -> tuple[Key, str] | None:
        """Return the key and uid of the server that a pod belongs to, or None."""
        with self._lock:
            found = self._rollouts.owner_of_pod(namespace, name, uid)
            return found if found is not None and self._owners.key_of(found[1]) == found[0] else None

    def is_unproven(self, namespace: str, name: str, uid: str) -> bool:
        """Tell whether a pod says that it is a server's, and nobody has asked yet whether that is true."""
        with self._lock:
            return self._rollouts.is_unproven(namespace, name, uid)

    def replicas(self) -> int:
        """Return the number of pods of all servers."""
        with self._lock:
            return self._rollouts.count()

    # What they are to serve, and what they say

    def desired(self, key: Key) -> Desired | None:
        """Return what the replicas of a server are to serve; None: nobody has looked yet."""
        with self._lock:
            serving = self._serving(key)
            return None if serving is None else serving.desired

    def set_desired(self, key: Key, desired: Desired) -> None:
        """Take note of what a server's ConfigMap says."""
        with self._lock:
            serving = self._serving(key, make=True)
            if serving is not None:
                serving.desired = desired

    def said_before(self, key: Key, pod_uid: str, digest: bytes) -> ReplicaState | None:
        """Return the newest report of a replica if its body has this digest, else None."""
        with self._lock:
            serving = self._serving(key)
            before = None if serving is None else serving.said.get(pod_uid)
            return before.state if before is not None and before.digest == digest else None

    def hear(self, key: Key, uid: str, pod_uid: str, state: ReplicaState, digest: bytes = b"") -> bool:
        """Keep a replica's report; tell whether it is news, as it is after a long silence, whatever it says."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        with self._lock:
            serving = self._serving(key, make=True)
            if serving is None or self._owners.key_of(uid) != key:
                return False
            before = serving.said.get(pod_uid)
            if before is not None and (before.state is state or before.state == state):
                serving.said[pod_uid] = before._replace(at=now, digest=digest)
                return (now - before.at).total_seconds() >= SILENT_SECONDS
            serving.said[pod_uid] = ReplicaReportRecord(serving.shared(state), now, digest)
            return True

    def said(self, key: Key) -> dict[str, ReplicaReportRecord]:
        """Return the newest report of each replica, by uid of its pod."""
        with self._lock:
            serving = self._serving(key)
            return {} if serving is None else dict(serving.said)

    # Its children

    def held(self, key: Key, resource: str, name: str) -> str | None:
        """Return what a child says, as a digest; None: it is to be read."""
        with self._lock:
            serving = self._serving(key)
            return None if serving is None else serving.children.get((resource, name))

    def hold(self, key: Key, resource: str, name: str, content: str) -> None:
        """Take note of what a child says as it was read or written."""
        with self._lock:
            serving = self._serving(key, make=True)
            if serving is not None:
                serving.children[resource, name] = content

    def looked_at(self, key: Key) -> float | None:
        """Return the monotonic time at which all children of a server were read; None: not yet."""
        with self._lock:
            serving = self._serving(key)
            return None if serving is None else serving.looked_at

    def look_anew(self, key: Key, at: float) -> None:
        """Forget what is known of a server's children: all of them are read now."""
        with self._lock:
            serving = self._serving(key, make=True)
            if serving is not None:
                serving.children, serving.looked_at = {}, at

    def _serving(self, key: Key, *, make: bool = False) -> Serving | None:
        known = self._owners.get(key)
        if known is None:
            return None
        if known.serving is None and make:
            known.serving = Serving()
        return known.serving
