"""Provide the operator's memory of the cluster: a store for each resource, and what is remembered of each object.

All of it can be read from the cluster again. The stored objects are immutable: callers must not change them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from tunery_api.kinds import ADAPTER_KINDS, Kind
from tunery_api.names import label_value
from tunery_operator.observed.deployment import DeploymentView, ReplicaSet, ServerPodView
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.object import ObjectView, parse_object
from tunery_operator.observed.pod import LostPod, PodView, lost_pod
from tunery_operator.observed.published_result import PublishedResult
from tunery_operator.planning.resolution import selects
from tunery_operator.runtime.object_state import Departure, ObjectState, PodList
from tunery_operator.runtime.store import Store, later

MAX_LOST: Final = 50
"""Number of deleted pods of one Job that are remembered: the status has counted the earlier ones."""
DELETION_SECONDS: Final = 60.0
"""The longest time until the garbage collector deletes the pods of a deleted Job; it usually takes one second."""


class Cache:
    """One store for each resource, all under one lock."""

    def __init__(self, default_ttl: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self._lock = threading.RLock()
        self._default_ttl = default_ttl
        self._clock = clock
        self.objects: Mapping[Kind, Store[ObjectView]] = {kind: self._object_store() for kind in Kind}
        self.jobs: Store[JobView] = Store(self._lock, self._job_changed, selects=_is_followed)
        self.pods: Store[PodView] = Store(
            self._lock,
            self._pod_changed,
            {"job": lambda pod: ((pod.namespace, pod.job_uid),), "job name": lambda pod: ((pod.namespace, pod.job),)},
            selects=lambda pod: bool(pod.job_uid) and not pod.finished,
        )
        """The pods of Jobs that have not ended."""
        self.deployments: Store[DeploymentView] = Store(
            self._lock,
            self._deployment_changed,
            {"uid": lambda deployment: (deployment.uid,)},
            selects=lambda deployment: deployment.owner is not None and not deployment.deleting,
        )
        self.server_pods: Store[ServerPodView] = Store(
            self._lock,
            self._server_pod_changed,
            {"owner": lambda pod: ((pod.namespace, pod.owner_uid),), "replica set": lambda pod: (pod.made_by,)},
        )
        self.deployment_of: dict[ReplicaSet, str] = {}
        """The uid of the Deployment of each ReplicaSet that was read; empty: it has none.

        Labels do not prove the server of a pod: any author of a pod can write them.
        """
        self._states: dict[Key, ObjectState] = {}
        self._pod_lists: dict[str, PodList] = {}
        """By uid of the Job."""
        self._deleted_at: dict[tuple[str, str], float] = {}
        """When the operator deleted a Job of which pods are left, by namespace and uid."""
        self._deferred: set[Key] = set()

    def _object_store(self) -> Store[ObjectView]:
        return Store(
            self._lock,
            self._object_changed,
            {
                "uid": lambda view: [(view.namespace, view.uid)] if view.active else [],
                "child labels": lambda view: [_child_labels(view)] if view.active else [],
                "reference": lambda view: view.references,
                "sweep": lambda view: [view.trial.sweep_uid] if view.trial is not None else [],
            },
        )

    def now(self) -> datetime:
        """Return the time."""
        return datetime.fromtimestamp(self._clock(), UTC)

    # Objects of our kinds

    def put_object(self, kind: Kind, body: dict[str, Any]) -> set[Key]:
        """Add or update an object of our kinds; return the keys to reconcile."""
        return self.objects[kind].put(self.parse(kind, body))

    def parse(self, kind: Kind, body: dict[str, Any]) -> ObjectView:
        """Return the view of an object of our kinds."""
        return parse_object(kind, body, self._default_ttl)

    def get(self, key: Key) -> ObjectView | None:
        """Return an object of our kinds, active or ended; None if none is known."""
        return self.objects[key.kind].get(key.namespace, key.name)

    def body(self, key: Key) -> dict[str, Any] | None:
        """Return an active object; None if none is known."""
        view = self.get(key)
        return None if view is None else view.body

    def active(self, namespace: str, uid: str) -> ObjectView | None:
        """Return the active object of a namespace with this uid: a pod elsewhere can have any label."""
        return next(iter(self._by_index("uid", (namespace, uid))), None)

    def all_objects(self) -> list[ObjectView]:
        """Return all objects of our kinds."""
        return [view for store in self.objects.values() for view in store.items()]

    def phases(self) -> Counter[tuple[str, str, str]]:
        """Return the number of objects by kind, namespace and phase."""
        return Counter((view.key.kind.value, view.namespace, view.phase) for view in self.all_objects())

    def is_of_sweep(self, key: Key) -> bool:
        """Return whether an object is a sweep, or a trial of one."""
        view = self.get(key) if key.kind is Kind.LORAJOB else None
        return key.kind is Kind.LORASWEEP or (view is not None and view.trial is not None)

    def trials(self, sweep_uid: str) -> frozenset[str]:
        """Return the names of a sweep's LoRAJobs, active or ended."""
        return frozenset(view.name for view in self.objects[Kind.LORAJOB].by_index("sweep", sweep_uid))

    def published_results(self, server: Key) -> dict[tuple[Kind, str], PublishedResult]:
        """Return the published results that a server names or selects, by kind and name of their objects."""
        view = self.get(server)
        if view is None:
            return {}
        views = [each for kind in ADAPTER_KINDS for each in self.objects[kind].items(server.namespace)]
        return {(each.key.kind, each.name): each.published for each in views if each.published and _wants(view, each)}

    def state(self, key: Key, uid: str | None = None) -> ObjectState:
        """Return what is remembered of an active object, to be read or changed.

        If no object of that key and uid is active, changes are lost.
        """
        with self._lock:
            view = self.get(key)
            if view is None or not view.active or uid not in (None, view.uid):
                return ObjectState()
            return self._states.setdefault(key, ObjectState())

    def defer_keys(self, keys: Iterable[Key]) -> None:
        """Store keys to reconcile because of what a read returned, until `drain_keys`."""
        with self._lock:
            self._deferred.update(keys)

    def drain_keys(self) -> frozenset[Key]:
        """Return the keys of `defer_keys`, each once."""
        with self._lock:
            keys, self._deferred = frozenset(self._deferred), set()
            return keys

    def _by_index(self, index: str, value: Any) -> list[ObjectView]:
        return [view for store in self.objects.values() for view in store.by_index(index, value)]

    def _active_among(self, *keys: Key | None) -> set[Key]:
        """Return the keys of active objects: for the others, nothing is left to do."""
        return {key for key in keys if key is not None and self.body(key) is not None}

    def _object_changed(self, view: ObjectView, before: ObjectView | None, deleted: bool) -> set[Key]:
        if deleted or not view.active:
            self._states.pop(view.key, None)
        keys = set[Key]()
        known = [each for each in (before, view) if each is not None]
        changed = _has_just_ended(before) or _has_another_expiry(view, before) or _has_another_fetch(view, before)
        if not deleted and (view.active or changed):
            keys.add(view.key)
        if deleted or before is None or (before.phase, before.available) != (view.phase, view.available):
            keys.update(waiter.key for waiter in self._by_index("reference", view.key))
        if deleted or before is None or before.trial != view.trial:
            keys.update(each.trial.sweep for each in known if each.trial is not None)
        if deleted or before is None or before.published != view.published:
            servers = self.objects[Kind.ADAPTERSERVER].items(view.namespace)
            keys.update(server.key for server in servers if any(_wants(server, each) for each in known))
        return keys

    # Jobs and their pods

    def _job_changed(self, job: JobView, _: JobView | None, deleted: bool) -> set[Key]:
        if deleted:
            for departure in self._pod_lists.pop(job.uid, PodList()).departures.values():
                self._lose(job.namespace, job.owner_uid, job.name, departure.lost)
        if job.owner is None or job.done:
            return set()
        if not deleted and job.finished and self.get(job.owner) is not None:
            return {job.owner}  # even of an ended object: the Job is to be marked as done
        return self._active_among(job.owner)

    def _pod_changed(self, pod: PodView, _: PodView | None, deleted: bool) -> set[Key]:
        job = self._job_of(pod)
        if deleted:
            departure = Departure(pod.version, lost_pod(pod, self.now()))
            if job is not None:
                self._pod_lists.setdefault(job.uid, PodList()).departures[pod.uid] = departure
            else:
                self._lose(pod.namespace, pod.owner_uid, pod.job, departure.lost)
            if not self._watched_pods(pod.namespace, pod.job_uid):
                self._deleted_at.pop((pod.namespace, pod.job_uid), None)
        if job is not None:
            return self._active_among(job.owner)
        owners = [self.active(pod.namespace, pod.owner_uid), *self._by_index("child labels", pod.owner_labels)]
        return {view.key for view in owners if view is not None}

    def _job_of(self, pod: PodView) -> JobView | None:
        job = self.jobs.get(pod.namespace, pod.job)
        return job if job is not None and job.uid == pod.job_uid else None

    def _watched_pods(self, namespace: str, job_uid: str) -> tuple[PodView, ...]:
        return self.pods.by_index("job", (namespace, job_uid))

    def _lose(self, namespace: str, owner_uid: str, job_name: str, lost: LostPod | None) -> None:
        """Remember a deleted pod until its object ends."""
        owner = self.active(namespace, owner_uid)
        if owner is not None and lost is not None:
            state = self.state(owner.key)
            state.lost = {**state.lost, job_name: (*state.lost.get(job_name, ()), lost)[-MAX_LOST:]}

    def delete_job(self, job: JobView) -> None:
        """Note that the operator has deleted a Job with its pods."""
        with self._lock:
            if self._watched_pods(job.namespace, job.uid):
                self._deleted_at[job.namespace, job.uid] = self._clock()
            self.jobs.delete(job)

    def is_being_deleted(self, namespace: str, job_uid: str) -> bool:
        """Return whether the operator has just deleted a Job: its pods are about to be deleted."""
        with self._lock:
            deleted_at = self._deleted_at.get((namespace, job_uid))
            return deleted_at is not None and self._clock() - deleted_at < DELETION_SECONDS

    def pods_of(self, namespace: str, job_uid: str) -> tuple[PodView, ...]:
        """Return the pods of a Job, active or ended, oldest first."""
        with self._lock:
            unwatched = self._pod_lists.get(job_uid, PodList()).unwatched
            return oldest_first((*self._watched_pods(namespace, job_uid), *unwatched.values()))

    def needs_pod_list(self, job: JobView) -> bool:
        """Return whether pods of a Job have ended that are not known here: its pods must be listed live."""
        with self._lock:
            known = self._pod_lists.get(job.uid, PodList())
            if any(later(departure.version, known.version) for departure in known.departures.values()):
                return True
            ended = job.succeeded + job.failed
            return ended != known.ended and ended > sum(pod.finished for pod in known.unwatched.values())

    def put_pod_list(self, job: JobView, pods: Iterable[PodView], version: str) -> None:
        """Take over a live list of a known Job's pods, of that version: what a watch reported later is newer."""
        with self._lock:
            known = self.jobs.get(job.namespace, job.name)
            if known is None or known.uid != job.uid:
                return
            listed = {pod.uid: pod for pod in pods}
            for pod in listed.values():
                self.pods.put(pod)
            for pod in self._watched_pods(job.namespace, job.uid):
                if pod.uid not in listed and not later(pod.version, version):
                    self.pods.delete(pod)
            watched = {pod.uid for pod in self._watched_pods(job.namespace, job.uid)}
            record = self._pod_lists.setdefault(job.uid, PodList())
            record.version, record.ended = version, job.succeeded + job.failed
            record.unwatched = {uid: pod for uid, pod in listed.items() if uid not in watched}
            for uid, departure in list(record.departures.items()):
                self._settle(job, record, uid, departure)

    def _settle(self, job: JobView, record: PodList, uid: str, departure: Departure) -> None:
        """Drop a departure if the list tells what became of the pod."""
        pod = record.unwatched.get(uid)
        if pod is None and not later(departure.version, record.version):
            self._lose(job.namespace, job.owner_uid, job.name, departure.lost)
            del record.departures[uid]
        elif pod is not None and pod.finished:
            del record.departures[uid]

    # Servers

    def _deployment_changed(self, after: DeploymentView, before: DeploymentView | None, deleted: bool) -> set[Key]:
        return self._active_among(after.owner, before.owner if before is not None else None)

    def _server_pod_changed(self, pod: ServerPodView, _: ServerPodView | None, deleted: bool) -> set[Key]:
        """Return the server that a pod's labels name; they may be wrong, and then its reconcile changes nothing."""
        server = self.active(pod.namespace, pod.owner_uid)
        keys = {server.key} if server is not None else set[Key]()
        if deleted and not self.server_pods.by_index("replica set", pod.made_by):
            self.deployment_of.pop(pod.made_by, None)
        for state in map(self.state, keys if deleted else ()):
            state.reports = {uid: report for uid, report in state.reports.items() if uid != pod.uid}
        return keys

    def replicas(self, key: Key, uid: str, deployment: DeploymentView | None) -> tuple[ServerPodView, ...]:
        """Return the pods of a server's Deployment, oldest first."""
        labelled = self.server_pods.by_index("owner", (key.namespace, uid))
        made = (pod for pod in labelled if deployment and self.deployment_of.get(pod.made_by) == deployment.uid)
        return oldest_first(made)

    # The pods that report

    def owner_of_pod(self, namespace: str, name: str, uid: str) -> tuple[Key, str] | None:
        """Return the key and uid of the active object that a pod works and reports for, or None.

        Of pods that work together only the first one reports. Its Job may be gone: a pod that is being deleted reports
        the checkpoint that it stores.
        """
        with self._lock:
            pod = self.pods.get(namespace, name)
            if pod is not None and pod.uid == uid:
                job = self._job_of(pod)
                owner = None if pod.index else self.active(namespace, pod.owner_uid if job is None else job.owner_uid)
            else:
                owner = self._server_of(namespace, name, uid)
            return (owner.key, owner.uid) if owner is not None else None

    def _server_of(self, namespace: str, name: str, uid: str) -> ObjectView | None:
        """Return the server of a pod, by the Deployment of its ReplicaSet."""
        pod = self.server_pods.get(namespace, name)
        made_by = self.deployment_of.get(pod.made_by) if pod is not None and pod.uid == uid else None
        deployment = next(iter(self.deployments.by_index("uid", made_by)), None) if made_by else None
        is_here = deployment is not None and deployment.namespace == namespace
        return self.active(namespace, deployment.owner_uid) if deployment and is_here else None

    def is_unproven(self, namespace: str, name: str, uid: str) -> bool:
        """Return whether the labels of a pod name a server, and its ReplicaSet was not read yet."""
        pod = self.server_pods.get(namespace, name)
        unread = pod is not None and pod.replica_set_uid and pod.made_by not in self.deployment_of
        return bool(unread) and pod is not None and pod.uid == uid


P = TypeVar("P", PodView, ServerPodView)


def oldest_first(pods: Iterable[P]) -> tuple[P, ...]:
    """Return pods by the time of their creation."""
    return tuple(sorted(pods, key=lambda pod: (pod.created, pod.name)))


def _is_followed(job: JobView) -> bool:
    """Return whether the status of an object depends on a Job: not if it is done, or has no owner of our kinds."""
    return job.owner is not None and not job.done and not job.deleting


def _child_labels(view: ObjectView) -> tuple[str, str, str]:
    """Return namespace, kind and name as the labels of an object's children state them."""
    return view.namespace, view.key.kind.singular, label_value(view.name)


def _has_just_ended(before: ObjectView | None) -> bool:
    return before is not None and before.active


def _has_another_expiry(view: ObjectView, before: ObjectView | None) -> bool:
    return view.expires is not None and (before is None or before.expires != view.expires)


def _has_another_fetch(view: ObjectView, before: ObjectView | None) -> bool:
    return view.fetch != (before.fetch if before is not None else None)


def _wants(server: ObjectView, view: ObjectView) -> bool:
    """Return whether a server names or selects a LoRAJob or AdapterMerge."""
    if view.published is None or not server.active:
        return False
    selected = server.selector is not None and selects(server.selector, view.published.labels)
    return selected or view.key in server.references
