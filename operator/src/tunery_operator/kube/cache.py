"""What the watches told: the unfinished objects, their Jobs and pods, and who waits for whom.

Written by the event loop, read by the threads that reconcile; each step is one operation on a dict.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tunery_api.names import child_name
from tunery_api.runspec import Task, TrainerStatus
from tunery_api.status import Phase
from tunery_operator.plan.model import Key, Kind
from tunery_operator.status.jobview import JobView, controller_of, parse_job
from tunery_operator.status.podview import LostPod, PodView, parse_pod

FINAL = frozenset({Phase.SUCCEEDED.value, Phase.FAILED.value})
_KINDS = {kind.value: kind for kind in Kind}


class Seen(NamedTuple):
    """What is kept of every object, finished or not."""

    uid: str
    phase: str


class Cache:
    """The operator's memory; all of it can be had again from the cluster."""

    def __init__(self) -> None:
        self.seen: dict[Key, Seen] = {}
        self.bodies: dict[Key, dict[str, Any]] = {}
        self.stale: set[Key] = set()
        """Keys whose next reconcile reads everything live."""
        self.progress: dict[Key, tuple[str, TrainerStatus]] = {}
        """The newest report, with the uid of the object it is for."""
        self.written: dict[Key, float] = {}
        """Monotonic time of the last write of status."""
        self.configured: set[tuple[str, str]] = set()
        """Uid of the object and name of each ConfigMap that is known to exist."""
        self._jobs: dict[tuple[str, str], tuple[Key, JobView]] = {}
        self._pods: dict[str, dict[str, PodView]] = {}
        self._pod_jobs: dict[str, tuple[str, str]] = {}
        """Namespace and name of the Job, by uid of the pod."""
        self._lost: dict[str, dict[str, LostPod]] = {}
        self._waiters: dict[Key, set[Key]] = {}

    # Objects of ours

    def see_owner(self, kind: Kind, body: dict[str, Any]) -> set[Key]:
        """Take note of an object as a watch, a read or a write returned it; return the keys to reconcile."""
        meta = body["metadata"]
        key = Key(kind, meta["namespace"], meta["name"])
        known = self.bodies.get(key)
        if known is not None and not _newer(meta, known["metadata"]):
            return set()
        phase = (body.get("status") or {}).get("phase") or Phase.PENDING.value
        before, self.seen[key] = self.seen.get(key), Seen(meta["uid"], phase)
        waiters = self._waiters.get(key, set()) if before is None or before.phase != phase else set()
        if phase in FINAL:
            self._drop(key)
            has_ttl = (body.get("spec") or {}).get("ttlSecondsAfterFinished") is not None
            return {*waiters, key} if has_ttl else set(waiters)
        meta.pop("managedFields", None)
        self.bodies[key] = body
        return {*waiters, key}

    def forget_owner(self, key: Key, uid: str | None = None) -> set[Key]:
        """Forget a deleted object, unless another of that name is there already; return the keys that waited."""
        seen = self.seen.get(key)
        if seen is None or (uid is not None and seen.uid != uid):
            return set()
        self.seen.pop(key, None)
        self._drop(key)
        return set(self._waiters.pop(key, ()))

    def _drop(self, key: Key) -> None:
        body = self.bodies.pop(key, None)
        self.stale.discard(key)
        self.progress.pop(key, None)
        self.written.pop(key, None)
        self._drop_jobs(key)
        if body is not None:
            uid = body["metadata"]["uid"]
            self.configured -= {entry for entry in self.configured if entry[0] == uid}

    def wait_for(self, target: Key, waiter: Key) -> None:
        """Reconcile `waiter` whenever the phase of `target` changes."""
        self._waiters.setdefault(target, set()).add(waiter)

    def unfinished(self) -> list[Key]:
        """Return the keys of all objects that have not ended."""
        return list(self.bodies)

    def phases(self) -> Counter[tuple[str, str]]:
        """Return the number of objects by kind and phase."""
        return Counter((key.kind.value, seen.phase) for key, seen in list(self.seen.items()))

    # Jobs

    def see_job(self, body: dict[str, Any]) -> set[Key]:
        """Take note of a Job; return the keys to reconcile: none where nothing changed that a verdict needs."""
        key, view = owner_key(body), parse_job(body)
        if key is None or self._is_finished(key, view.owner_uid):
            return set()
        index = (key.namespace, view.name)
        known = self._jobs.get(index)
        if known is not None and not _later(view.version, known[1].version) and known[1].uid == view.uid:
            return set()
        self._jobs[index] = (key, view)
        return set() if known is not None and _same(known[1], view) else {key}

    def forget_job(self, namespace: str, name: str, uid: str) -> set[Key]:
        """Forget a deleted Job; return the keys to reconcile."""
        known = self._jobs.get((namespace, name))
        if known is None or known[1].uid != uid:
            return set()
        self._jobs.pop((namespace, name), None)
        self._pods.pop(uid, None)
        return {known[0]}

    def job(self, namespace: str, name: str) -> JobView | None:
        """Return a Job, or None where none was seen."""
        known = self._jobs.get((namespace, name))
        return known[1] if known else None

    def _drop_jobs(self, key: Key) -> None:
        for task in Task:
            index = (key.namespace, child_name(key.name, task.value))
            known = self._jobs.get(index)
            if known is not None and known[0] == key:
                self._jobs.pop(index, None)
                for pod in self._pods.pop(known[1].uid, {}).values():
                    self._pod_jobs.pop(pod.uid, None)
                self._lost.pop(known[1].uid, None)

    def _is_finished(self, key: Key, uid: str) -> bool:
        seen = self.seen.get(key)
        return seen is not None and seen.uid == uid and seen.phase in FINAL

    # Pods

    def see_pod(self, body: dict[str, Any]) -> set[Key]:
        """Take note of a pod; return the keys to reconcile."""
        view = parse_pod(body)
        known = self._jobs.get((body["metadata"]["namespace"], view.job))
        if known is None and view.finished:
            return set()
        self._pod_jobs[view.uid] = (body["metadata"]["namespace"], view.job)
        pods = self._pods.setdefault(view.job_uid, {})
        before, pods[view.name] = pods.get(view.name), view
        if before is not None and _same(before, view):
            return set()
        return {known[0]} if known is not None else set()

    def forget_pod(self, body: dict[str, Any]) -> set[Key]:
        """Forget a deleted pod, but not how long it ran; return the keys to reconcile."""
        view = parse_pod(body)
        self._pod_jobs.pop(view.uid, None)
        if view.started_at is not None:
            ended = view.finished_at or view.started_at
            lost = LostPod(view.uid, view.name, view.created, (ended - view.started_at).total_seconds())
            self._lost.setdefault(view.job_uid, {})[view.uid] = lost
        pods = self._pods.get(view.job_uid)
        if pods is not None:
            pods.pop(view.name, None)
        known = self._jobs.get((body["metadata"]["namespace"], view.job))
        return {known[0]} if known is not None else set()

    def pods(self, job_uid: str) -> tuple[PodView, ...]:
        """Return the pods of a Job, oldest first."""
        views = list(self._pods.get(job_uid, {}).values())
        return tuple(sorted(views, key=lambda pod: (pod.created, pod.name)))

    def owner_of_pod(self, namespace: str, name: str, uid: str) -> tuple[Key, str] | None:
        """Return the key and uid of the unfinished object that a pod works for, or None."""
        index = self._pod_jobs.get(uid)
        known = self._jobs.get(index) if index is not None else None
        if known is None or index is None or index[0] != namespace:
            return None
        key, job = known
        pod = self._pods.get(job.uid, {}).get(name)
        return (key, job.owner_uid) if pod is not None and pod.uid == uid else None

    def replace_pods(self, job_uid: str, bodies: Iterable[dict[str, Any]]) -> None:
        """Take note of all pods that a Job has."""
        views = map(parse_pod, bodies)
        self._pods[job_uid] = {view.name: view for view in views}

    def lost_pods(self, job_uid: str) -> tuple[LostPod, ...]:
        """Return what is remembered of the vanished pods of a Job."""
        return tuple(self._lost.get(job_uid, {}).values())


def owner_key(body: dict[str, Any]) -> Key | None:
    """Return the key of the object of ours that controls a child, or None."""
    reference = controller_of(body)
    kind = _KINDS.get(reference.get("kind", ""))
    if kind is None or not str(reference.get("apiVersion", "")).startswith("tunery.dev/"):
        return None
    return Key(kind, body["metadata"]["namespace"], reference["name"])


def _same(old: Any, new: Any) -> bool:
    """Tell whether two views differ in their version only."""
    return bool(dataclasses.replace(old, version=new.version) == new)


def _newer(meta: dict[str, Any], known: dict[str, Any]) -> bool:
    if meta["uid"] != known["uid"]:
        return bool(meta.get("creationTimestamp", "") >= known.get("creationTimestamp", ""))
    return _later(meta.get("resourceVersion", ""), known.get("resourceVersion", ""))


def _later(version: str, known: str) -> bool:
    """Tell whether a resource version is later than another; they are numbers on every real API server."""
    if version.isdigit() and known.isdigit():
        return int(version) > int(known)
    return version != known
