"""What is known of Jobs and their pods; not safe for threads by itself, see cache.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tunery_operator.client.versions import Tombstones, later
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.pod import LostPod, PodView


class Mark(NamedTuple):
    """What tells that a live list of a Job's pods is out of date."""

    departures: int
    ended: int
    """Pods that ended, as the Job controller counts them."""


_NOTHING: Final = Mark(0, 0)


@dataclass(slots=True)
class JobRecord:
    """One Job, or what is left of it, and its pods."""

    namespace: str
    name: str
    uid: str
    key: Key | None = None
    """The object that the Job belongs or belonged to; None where neither the Job nor its owner was ever seen."""
    owner_uid: str = ""
    view: JobView | None = None
    pods: dict[str, PodView] = field(default_factory=dict)
    left: dict[str, LostPod] = field(default_factory=dict)
    """Pods, by uid, that left the watch: they have ended, or were deleted."""
    removed_at: float | None = None
    """When the operator itself has deleted the Job with its pods."""
    departures: int = 0
    asked: Mark = _NOTHING
    answered: Mark = _NOTHING
    changed: set[str] = field(default_factory=set)
    """Names of the pods that the watch told of since the last live list was asked for."""


OnLost = Callable[[str, str, LostPod], None]
"""Called with the uid of an object, the name of its Job and a pod of it that is gone altogether."""


class Children:
    """Jobs and pods by the Job's uid."""

    def __init__(self, on_lost: OnLost) -> None:
        self._on_lost = on_lost
        self._families: dict[str, JobRecord] = {}
        self._names: dict[tuple[str, str], set[str]] = {}
        """Uids of the Jobs that bear or bore a name, by namespace and name."""
        self._job_of_pod: dict[str, str] = {}
        self._gone = Tombstones()

    # Jobs

    def see_job(self, key: Key, view: JobView) -> set[Key]:
        """Take note of a Job; return the keys to reconcile: none where nothing changed that a verdict needs."""
        if view.uid in self._gone:
            return set()
        family = self._family(view.uid, key.namespace, view.name)
        before = family.view
        if before is not None and not later(view.version, before.version):
            return set()
        for other in self._named(key.namespace, view.name):
            if other.view is not None and other.uid != view.uid:
                if not later(view.version, other.view.version):
                    self._prune(family)
                    return set()
                self._drop(other)
        family.key, family.owner_uid, family.view = key, view.owner_uid, view
        return set() if before is not None and _same(before, view) else {key}

    def forget_job(self, uid: str) -> set[Key]:
        """Forget a Job that is deleted or done; return the keys to reconcile."""
        self._gone.add(uid)
        family = self._families.get(uid)
        if family is None or family.view is None:
            return set()
        self._drop(family)
        return _keys(family)

    def note_removed(self, uid: str, at: float) -> None:
        """Take note that the operator itself has deleted a Job with its pods, where one of them is left."""
        family = self._families.get(uid)
        if family is not None:
            family.removed_at = at

    def removed_at(self, uid: str) -> float | None:
        """Return when the operator itself has deleted a Job; None where it has not, or none of its pods is left."""
        family = self._families.get(uid)
        return None if family is None else family.removed_at

    def _drop(self, family: JobRecord) -> None:
        """Forget the Job; its pods that have not ended stay known until they are gone, and whose they are."""
        family.view = None
        self._tell_lost(family, family.left.values())
        family.left, family.changed = {}, set()
        for pod in [pod for pod in family.pods.values() if pod.finished]:
            self._remove_pod(family, pod)
        self._prune(family)

    def job(self, namespace: str, name: str) -> JobView | None:
        """Return a Job, or None where none was seen."""
        return next((family.view for family in self._named(namespace, name) if family.view is not None), None)

    def keys_with_jobs(self) -> set[Key]:
        """Return the keys of the objects with Jobs."""
        families = self._families.values()
        return {family.key for family in families if family.key is not None and family.view is not None}

    def unfinished_jobs(self, role: str) -> int:
        """Return the number of Jobs of a role that have not ended."""
        views = [family.view for family in self._families.values() if family.view is not None]
        return sum(view.role == role and not view.finished for view in views)

    def missing_jobs(self, namespace: str | None, uids: Collection[str], version: str) -> list[str]:
        """Return the uids of the Jobs that a complete list of that version did not have."""
        return [
            family.uid
            for family in self._families.values()
            if family.view is not None
            and namespace in (None, family.namespace)
            and family.uid not in uids
            and not later(family.view.version, version)
        ]

    # Pods

    def see_pod(self, namespace: str, view: PodView, key: Key | None) -> set[Key]:
        """Take note of a pod; return the keys to reconcile.

        `key` is the object that the pod itself says it works for, where that is known: its Job may be gone.
        """
        if view.uid in self._gone or not view.job_uid:
            return set()
        if view.job_uid not in self._families and view.finished:
            return set()
        family = self._family(view.job_uid, namespace, view.job)
        before = family.pods.get(view.name)
        if before is not None and before.uid == view.uid and not later(view.version, before.version):
            return set()
        if before is not None and before.uid != view.uid:
            self._job_of_pod.pop(before.uid, None)
        self._put_pod(family, view)
        family.owner_uid, family.key = family.owner_uid or view.owner_uid, family.key or key
        family.changed.add(view.name)
        return _keys(family) if before is None or not _same(before, view) else set()

    def leave(self, view: PodView, lost: LostPod | None, key: Key | None) -> set[Key]:
        """Take note that a pod left the watch: it has ended or was deleted. Return the keys to reconcile.

        `key` as for `see_pod`.
        `lost` is what to remember of it if it is gone altogether.
        """
        self._gone.add(view.uid)
        family = self._families.get(view.job_uid)
        if family is None:
            return set()
        family.key = family.key or key
        known = family.pods.get(view.name)
        if known is not None and known.uid == view.uid:
            self._remove_pod(family, known)
        if family.view is not None:
            family.departures += 1
            if lost is not None:
                family.left[view.uid] = lost
        elif lost is not None:
            self._tell_lost(family, [lost])
        keys = _keys(family)
        self._prune(family)
        return keys

    def missing_pods(self, namespace: str | None, uids: Collection[str], version: str) -> list[PodView]:
        """Return the pods that have not ended and that a complete list of that version did not have."""
        return [
            pod
            for family in self._families.values()
            if namespace in (None, family.namespace)
            for pod in family.pods.values()
            if not pod.finished and pod.uid not in uids and not later(pod.version, version)
        ]

    def pods(self, job_uid: str) -> list[PodView]:
        """Return the pods of a Job."""
        family = self._families.get(job_uid)
        return [] if family is None else list(family.pods.values())

    def pods_named(self, namespace: str, job_name: str) -> list[PodView]:
        """Return the pods of all Jobs that bear or bore a name."""
        return [pod for family in self._named(namespace, job_name) for pod in family.pods.values()]

    def incomplete(self, job: JobView) -> bool:
        """Tell whether pods have ended that are not known; the next `replace` answers for what is known by now."""
        ended = job.succeeded + job.failed
        family = self._families.get(job.uid)
        if family is None:
            return ended > 0
        family.asked = Mark(family.departures, ended)
        family.changed.clear()
        if family.asked == family.answered:
            return False
        finished = sum(pod.finished for pod in family.pods.values())
        return family.departures > family.answered.departures or ended > finished

    def replace(self, job_uid: str, views: Iterable[PodView]) -> None:
        """Take over a live list of a Job's pods; what the watch told since it was asked for is newer."""
        family = self._families.get(job_uid)
        if family is None:
            return
        listed = {view.name: view for view in views}
        for known in list(family.pods.values()):
            if known.name not in listed and known.name not in family.changed:
                self._remove_pod(family, known)
        for view in listed.values():
            known_pod = family.pods.get(view.name)
            if known_pod is None or known_pod.uid != view.uid or later(view.version, known_pod.version):
                self._put_pod(family, view)
        self._settle(family, {view.uid: view for view in listed.values()})
        family.answered = family.asked
        family.changed.clear()

    def _settle(self, family: JobRecord, listed: dict[str, PodView]) -> None:
        """Tell, of the pods that left the watch, those that are gone from those that have ended."""
        for uid, lost in list(family.left.items()):
            view = listed.get(uid)
            if view is None:
                self._tell_lost(family, [lost])
            if view is None or view.finished:
                del family.left[uid]

    def owner_of_pod(self, namespace: str, name: str, uid: str) -> tuple[Key, str] | None:
        """Return the key and uid of the object that a pod works for and speaks for, or None.

        Of pods that work together only the first one speaks. Its Job may be gone: a pod that was told to end tells of
        the checkpoint that it stores then.
        """
        family = self._families.get(self._job_of_pod.get(uid, ""))
        if family is None or family.key is None or {family.namespace, family.key.namespace} != {namespace}:
            return None
        pod = family.pods.get(name)
        speaks = pod is not None and pod.uid == uid and not pod.index
        return (family.key, family.owner_uid) if speaks else None

    # The dicts

    def _family(self, uid: str, namespace: str, name: str) -> JobRecord:
        family = self._families.get(uid)
        if family is None:
            family = self._families[uid] = JobRecord(namespace, name, uid)
            self._names.setdefault((namespace, name), set()).add(uid)
        return family

    def _named(self, namespace: str, name: str) -> list[JobRecord]:
        return [self._families[uid] for uid in self._names.get((namespace, name), ())]

    def _put_pod(self, family: JobRecord, view: PodView) -> None:
        family.pods[view.name] = view
        self._job_of_pod[view.uid] = family.uid

    def _remove_pod(self, family: JobRecord, pod: PodView) -> None:
        del family.pods[pod.name]
        self._job_of_pod.pop(pod.uid, None)

    def _tell_lost(self, family: JobRecord, pods: Iterable[LostPod]) -> None:
        for lost in pods:
            self._on_lost(family.owner_uid, family.name, lost)

    def _prune(self, family: JobRecord) -> None:
        """Forget a family of which nothing is left."""
        if family.view is not None or family.pods:
            return
        del self._families[family.uid]
        uids = self._names[family.namespace, family.name]
        uids.discard(family.uid)
        if not uids:
            del self._names[family.namespace, family.name]


def _keys(family: JobRecord) -> set[Key]:
    return set() if family.key is None else {family.key}


def _same(old: Any, new: Any) -> bool:
    """Tell whether two views differ in their version only."""
    return bool(dataclasses.replace(old, version=new.version) == new)
