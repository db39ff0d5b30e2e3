"""What the watches told: the unfinished objects, their Jobs and pods, and who waits for whom; of servers: `servers`.

Watches, reads and writes tell it what they saw, in any order and as often as they like: a state that is not newer than
the known one is refused. One lock makes each method one step, for the event loop and the threads that reconcile.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from tunery_api.kinds import Kind
from tunery_operator.client.children import Children
from tunery_operator.client.owner_key import owner_key
from tunery_operator.client.owners import Owners, Report
from tunery_operator.client.server_cache import ServerCache, is_server_pod
from tunery_operator.observed.job import JobView, parse_job
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.pod import LostPod, PodView, parse_pod

GOING_SECONDS: Final = 60.0
"""How long the garbage collector may take to tell the pods of a deleted Job to end; most often it is one second."""


class Cache:
    """The operator's memory; all of it can be had again from the cluster.

    Bodies that go in or out are never changed afterwards, by anyone.
    """

    def __init__(self, default_ttl: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self._lock = threading.RLock()
        self._owners = Owners(default_ttl)
        self._children = Children(self._owners.note_lost)
        self._clock = clock
        self.servers = ServerCache(self._lock, self._owners, clock)
        """What only concerns AdapterServers."""
        self._deferred: set[Key] = set()

    # Objects of ours

    def see_owner(self, kind: Kind, body: dict[str, Any]) -> set[Key]:
        """Take note of an object as a watch, a read or a write returned it; return the keys to reconcile.

        A failed object that asks for another try counts as one that has not ended.
        """
        with self._lock:
            return self._owners.see(kind, body)

    def forget_owner(self, key: Key, uid: str | None = None) -> set[Key]:
        """Forget a deleted object, unless another of that name is there already; return the keys that waited."""
        with self._lock:
            return self._owners.forget(key, uid)

    def defer_keys(self, keys: Iterable[Key]) -> None:
        """Keep the keys to reconcile because of what a read returned, until `drain_keys`."""
        with self._lock:
            self._deferred.update(keys)

    def drain_keys(self) -> frozenset[Key]:
        """Return the keys of `defer_keys`, each once."""
        with self._lock:
            keys, self._deferred = frozenset(self._deferred), set()
            return keys

    def retain_owners(self, kind: Kind, namespace: str | None, uids: Collection[str], version: str) -> set[Key]:
        """Forget what a complete list of that version, of one namespace or of all, did not have; as `forget_owner`."""
        with self._lock:
            missing = self._owners.retain(kind, namespace, uids, version)
            return {waiter for key, uid in missing for waiter in self._owners.forget(key, uid)}

    def body(self, key: Key) -> dict[str, Any] | None:
        """Return an object that has not ended, or None where none is known."""
        with self._lock:
            known = self._owners.get(key)
            return None if known is None else known.body

    def is_known(self, key: Key) -> bool:
        """Tell whether there is an object of that key, as far as anybody told, ended or not."""
        with self._lock:
            return self._owners.is_known(key)

    def is_stale(self, key: Key) -> bool:
        """Tell whether the next reconcile of an object reads everything live."""
        with self._lock:
            known = self._owners.get(key)
            return known is not None and known.stale

    def mark_stale(self, key: Key) -> None:
        """Let the next reconcile of an object read everything live."""
        self._set_stale(key, True)

    def mark_fresh(self, key: Key) -> None:
        """Take note that everything about an object was read live."""
        self._set_stale(key, False)

    def _set_stale(self, key: Key, stale: bool) -> None:
        with self._lock:
            known = self._owners.get(key)
            if known is not None:
                known.stale = stale

    def wait_for(self, target: Key, waiter: Key) -> None:
        """Reconcile `waiter` whenever the phase of `target` changes, for as long as `waiter` has not ended."""
        with self._lock:
            self._owners.wait_for(target, waiter)

    def is_of_sweep(self, key: Key) -> bool:
        """Tell whether an object is a sweep, or one of the trials of one."""
        if key.kind is not Kind.LORAJOB:
            return key.kind is Kind.LORASWEEP
        with self._lock:
            return self._owners.trials.has(key)

    def trials(self, sweep_uid: str) -> frozenset[str]:
        """Return the names of a sweep's LoRAJobs, whether they have ended or not."""
        with self._lock:
            return self._owners.trials.of(sweep_uid)

    def unfinished(self) -> list[Key]:
        """Return the keys of all objects that have not ended."""
        with self._lock:
            return self._owners.unfinished()

    def unmarked(self) -> list[Key]:
        """Return the keys of the finished objects with Jobs that are to be marked as done, or even stopped."""
        with self._lock:
            keys = self._children.keys_with_jobs()
            return [key for key in keys if self._owners.get(key) is None and self._owners.is_known(key)]

    def take_expired(self) -> list[Key]:
        """Return the keys of the finished objects whose time to live is over, each of them once."""
        with self._lock:
            return self._owners.take_expired(self._clock())

    def phases(self) -> Counter[tuple[str, str, str]]:
        """Return the number of objects by kind, namespace and phase."""
        with self._lock:
            return self._owners.phases()

    # What is remembered for an object until it has ended

    def progress(self, key: Key, uid: str) -> Report | None:
        """Return the newest report for the object of that key and uid."""
        with self._lock:
            known = self._owners.of_uid(uid)
            return None if known is None or known is not self._owners.get(key) else known.progress

    def set_progress(self, key: Key, uid: str, report: Report) -> None:
        """Keep a report for an object, if it has not ended."""
        with self._lock:
            known = self._owners.of_uid(uid)
            if known is not None and known is self._owners.get(key):
                known.progress = report

    def written_at(self, key: Key) -> float | None:
        """Return the monotonic time of the last write of an object's status."""
        with self._lock:
            known = self._owners.get(key)
            return None if known is None else known.written_at

    def note_written(self, key: Key, at: float) -> None:
        """Take note of the monotonic time of a write of an object's status."""
        with self._lock:
            known = self._owners.get(key)
            if known is not None:
                known.written_at = at

    # Jobs

    def see_job(self, body: dict[str, Any]) -> set[Key]:
        """Take note of a Job; return the keys to reconcile: none where nothing changed that a verdict needs.

        A Job that is marked as done is forgotten: the watch does not tell of it, either. One that is on its way out
        counts as gone. One that has ended and is not marked as done has its object reconciled even if that has ended.
        """
        key, view = owner_key(body), parse_job(body)
        with self._lock:
            if key is None:
                # Somebody took the owner reference away: it is not ours any more.
                return self._unfinished_among(self._children.forget_job(view.uid))
            if view.done:
                self._children.forget_job(view.uid)
                return set()
            if "deletionTimestamp" in body["metadata"]:
                return self._unfinished_among(self._children.forget_job(view.uid))
            keys = self._children.see_job(key, view)
            return keys if view.finished and self._owners.is_known(key) else self._unfinished_among(keys)

    def forget_job(self, namespace: str, name: str, uid: str) -> set[Key]:
        """Forget a deleted Job; return the keys to reconcile.

        Its pods stay known until they leave the watch; a late event does not bring it back.
        """
        with self._lock:
            return self._unfinished_among(self._children.forget_job(uid))

    def note_removed(self, uid: str) -> None:
        """Take note that the operator itself has deleted a Job with its pods."""
        with self._lock:
            self._children.note_removed(uid, self._clock())

    def is_going(self, job_uid: str) -> bool:
        """Tell whether the pods of a Job are about to be told to end, as the operator has just deleted it."""
        with self._lock:
            removed = self._children.removed_at(job_uid)
            return removed is not None and self._clock() - removed < GOING_SECONDS

    def _unfinished_among(self, keys: set[Key]) -> set[Key]:
        """Return those of the keys whose objects have not ended: nothing is left to do for the others."""
        return {key for key in keys if self._owners.get(key) is not None}

    def retain_jobs(self, namespace: str | None, uids: Collection[str], version: str) -> set[Key]:
        """Forget the Jobs that a complete list did not have; as `retain_owners`."""
        with self._lock:
            missing = self._children.missing_jobs(namespace, uids, version)
            return self._unfinished_among({key for uid in missing for key in self._children.forget_job(uid)})

    def job(self, namespace: str, name: str) -> JobView | None:
        """Return a Job that is not done, or None where none was seen."""
        with self._lock:
            return self._children.job(namespace, name)

    def unfinished_jobs(self, role: str) -> int:
        """Return the number of known Jobs with that value of ROLE_LABEL that have not ended."""
        with self._lock:
            return self._children.unfinished_jobs(role)

    # Pods

    def see_pod(self, body: dict[str, Any]) -> set[Key]:
        """Take note of a pod; return the keys to reconcile."""
        if is_server_pod(body):
            return self.servers.see_pod(body)
        view, namespace = parse_pod(body, self._now()), body["metadata"]["namespace"]
        with self._lock:
            key = self._owners.key_of(view.owner_uid)
            return self._unfinished_among(self._children.see_pod(namespace, view, key))

    def forget_pod(self, body: dict[str, Any]) -> set[Key]:
        """Take note that a pod left the watch, ended or deleted; return the keys to reconcile."""
        if is_server_pod(body):
            return self.servers.forget_pod(body)
        view = parse_pod(body, self._now())
        with self._lock:
            return self._unfinished_among(self._leave(view))

    def retain_pods(self, namespace: str | None, uids: Collection[str], version: str) -> set[Key]:
        """Take note that the pods which a complete list did not have left the watch; as `retain_owners`."""
        with self._lock:
            missing = self._children.missing_pods(namespace, uids, version)
            keys = {key for view in missing for key in self._leave(view)}
            return self._unfinished_among(keys) | self.servers.retain_pods(namespace, uids, version)

    def _leave(self, view: PodView) -> set[Key]:
        return self._children.leave(view, self._lost(view), self._owners.key_of(view.owner_uid))

    def _lost(self, view: PodView) -> LostPod | None:
        """Return what to remember of a pod should it be gone: it ended when it left, or when it had been told to."""
        if view.started_at is None:
            return None
        now = self._now()
        ended = view.finished_at or min(now, view.deleted_at or now)
        seconds = max(0.0, (ended - view.started_at).total_seconds())
        return LostPod(
            view.uid,
            view.name,
            view.created,
            seconds,
            view.started_at,
            view.node,
            view.disruption,
            view.index,
            view.exit_code,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def pods(self, job_uid: str) -> tuple[PodView, ...]:
        """Return the pods of a Job, oldest first."""
        with self._lock:
            return _oldest_first(self._children.pods(job_uid))

    def pods_named(self, namespace: str, job_name: str) -> tuple[PodView, ...]:
        """Return the pods of all Jobs that bear or bore a name, oldest first."""
        with self._lock:
            return _oldest_first(self._children.pods_named(namespace, job_name))

    def pods_incomplete(self, job: JobView) -> bool:
        """Tell whether pods of a Job have ended that are not known here: its pods are to be listed live.

        Ask before every live list, also when it is made for another reason: `replace_pods` answers for what was known
        when this was asked.
        """
        with self._lock:
            return self._children.incomplete(job)

    def replace_pods(self, job_uid: str, bodies: Iterable[dict[str, Any]]) -> None:
        """Take over a live list of a Job's pods; without effect where the Job is not known here."""
        views = [parse_pod(body, self._now()) for body in bodies]
        with self._lock:
            self._children.replace(job_uid, views)

    def lost_named(self, namespace: str, job_name: str) -> tuple[LostPod, ...]:
        """Return what is remembered of the vanished pods of all Jobs of a name, until the object ends."""
        with self._lock:
            return tuple(self._owners.lost_named(namespace, job_name))

    def owner_of_pod(self, namespace: str, name: str, uid: str) -> tuple[Key, str] | None:
        """Return the key and uid of the unfinished object that a pod works for, or None."""
        with self._lock:
            found = self._children.owner_of_pod(namespace, name, uid)
            if found is None:
                return self.servers.owner_of_pod(namespace, name, uid)
            return found if self._owners.of_uid(found[1]) is not None else None


def _oldest_first(pods: list[PodView]) -> tuple[PodView, ...]:
    return tuple(sorted(pods, key=lambda pod: (pod.created, pod.name)))
