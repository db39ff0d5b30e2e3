"""What is known of our objects; not safe for threads by itself, see cache.py."""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from tunery_api.kinds import ADAPTER_KINDS, JOB_KINDS, Kind
from tunery_api.names import RETRY_ANNOTATION
from tunery_api.runspec import TrainerStatus
from tunery_api.serverstatus import ServerCondition
from tunery_api.status import FINAL_PHASES, ConditionStatus, Phase
from tunery_operator.client.offers import Offers
from tunery_operator.client.serving import Serving
from tunery_operator.client.trials import Trials
from tunery_operator.client.versions import Tombstones, later
from tunery_operator.observed.metadata import Key, parse_time, retry_mark, time_to_live
from tunery_operator.observed.pod import LostPod

MAX_LOST: Final = 50
"""So many vanished pods of one Job are remembered: status has long counted the ones before."""


class Seen(NamedTuple):
    """All that is kept of an object that has ended: 100,000 of them are to cost little."""

    uid: str
    version: str
    phase: str
    expires: float | None
    """When its time to live is over, in seconds since 1970; None: never, or it has not ended."""
    answers: bool = False
    """A server's: some replica answers requests. Its phase alone does not say so."""


class Report(NamedTuple):
    """What a pod said last."""

    status: TrainerStatus
    pod_uid: str
    at: datetime
    """When it came, by the operator's own clock."""


@dataclass(slots=True)
class ActiveObject:
    """What is kept of an object that has not ended."""

    body: dict[str, Any]
    stale: bool = False
    """The next reconcile reads everything live."""
    progress: Report | None = None
    written_at: float | None = None
    lost: dict[str, dict[str, LostPod]] = field(default_factory=dict)
    """Its pods that are gone, by name of their Job and by uid."""
    awaited: set[Key] = field(default_factory=set)
    """The objects that this one waits for."""
    serving: Serving | None = None
    """What is known of a server beside its children; None: nothing yet, or it is none."""


class Owners:
    """The objects by key; of those that have ended only a few words."""

    def __init__(self, default_ttl: int | None = None) -> None:
        self._default_ttl = default_ttl
        self.offers = Offers()
        self.trials = Trials()
        self._seen: dict[Key, Seen] = {}
        self._unfinished: dict[Key, ActiveObject] = {}
        self._keys: dict[str, Key] = {}
        """Keys of the unfinished objects by uid."""
        self._waiters: dict[Key, set[Key]] = {}
        self._of_job: dict[tuple[str, str], Key] = {}
        """Whose Job it was that lost pods, by namespace and name of the Job."""
        self._gone = Tombstones()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._expiring: list[tuple[float, Key]] = []
        """A heap; an entry counts only while it says what `Seen.expires` says."""

    def see(self, kind: Kind, body: dict[str, Any]) -> set[Key]:
        """Take note of an object; return the keys to reconcile: none where the state is not newer than the known."""
        meta = body["metadata"]
        key = Key(kind, sys.intern(meta["namespace"]), meta["name"])
        uid, version = meta["uid"], meta.get("resourceVersion", "")
        before = self._seen.get(key)
        if uid in self._gone or (before is not None and not later(version, before.version)):
            return set()
        woken = set[Key]()
        if before is not None and before.uid != uid:
            woken = self._remove(key, before)
            before = None
        phase = sys.intern((body.get("status") or {}).get("phase") or Phase.PENDING.value)
        over = _is_over(kind, body)
        seen = Seen(uid, version, phase, self._expires(body) if over else None, _answers(body))
        self._put(key, before, seen)
        waiters = set(self._waiters.get(key, ())) if _changed(before, seen) else set()
        waiters |= woken
        if kind in ADAPTER_KINDS:
            waiters |= self.offers.see(key, body)
        elif kind not in JOB_KINDS:
            self.offers.follow(key, body.get("spec") or {})
        if kind is Kind.LORAJOB:
            waiters |= self.trials.see(key, body)
        if over:
            # Who ends an object looks after its Jobs; where another has ended it, somebody has to.
            ended = {key} if key in self._unfinished else set()
            self._end(key)
            return waiters | ended
        meta.pop("managedFields", None)
        self._keep(key, uid, body)
        return {*waiters, key}

    def _put(self, key: Key, before: Seen | None, seen: Seen) -> None:
        if before is not None:
            self._count(key, before, -1)
        self._seen[key] = seen
        self._count(key, seen, 1)
        if seen.expires is not None and (before is None or before.expires != seen.expires):
            heapq.heappush(self._expiring, (seen.expires, key))

    def _keep(self, key: Key, uid: str, body: dict[str, Any]) -> None:
        known = self._unfinished.get(key)
        if known is None:
            self._unfinished[key] = ActiveObject(body)
            self._keys[uid] = key
        else:
            known.body = body

    def _expires(self, body: dict[str, Any]) -> float | None:
        ttl = time_to_live(body, self._default_ttl)
        ended = parse_time((body.get("status") or {}).get("completionTime"))
        return None if ended is None or ttl is None else ended.timestamp() + ttl

    def forget(self, key: Key, uid: str | None) -> set[Key]:
        """Forget a deleted object, unless another of that name is there already; return the keys that waited."""
        seen = self._seen.get(key)
        if uid is not None:
            self._gone.add(uid)
        if seen is None or (uid is not None and seen.uid != uid):
            return set()
        return self._remove(key, seen) | self._waiters.get(key, set())

    def _remove(self, key: Key, seen: Seen) -> set[Key]:
        """Forget an object altogether; return the servers that wanted what it offered, and the sweep that made it."""
        self._gone.add(seen.uid)
        self._end(key)
        del self._seen[key]
        self._count(key, seen, -1)
        if len(self._expiring) > 64 + 2 * len(self._seen):
            self._expiring = [(when, kept) for when, kept in self._expiring if self._expires_at(kept) == when]
            heapq.heapify(self._expiring)
        woken = self.trials.forget(key) if key.kind is Kind.LORAJOB else set()
        return woken | (self.offers.forget(key) if key.kind in ADAPTER_KINDS else set())

    def _end(self, key: Key) -> None:
        """Drop what only an unfinished object needs."""
        known = self._unfinished.pop(key, None)
        if known is None:
            return
        del self._keys[known.body["metadata"]["uid"]]
        for name in known.lost:
            del self._of_job[key.namespace, name]
        for target in known.awaited:
            waiters = self._waiters[target]
            waiters.discard(key)
            if not waiters:
                del self._waiters[target]
        if key.kind not in JOB_KINDS:
            self.offers.leave(key)

    def _count(self, key: Key, seen: Seen, step: int) -> None:
        entry = (key.kind.value, key.namespace, seen.phase)
        self._counts[entry] += step
        if not self._counts[entry]:
            del self._counts[entry]

    def retain(self, kind: Kind, namespace: str | None, uids: Collection[str], version: str) -> list[tuple[Key, str]]:
        """Return key and uid of each object of a kind that a complete list of that version did not have.

        An object that is newer than the list is left alone.
        """
        return [
            (key, seen.uid)
            for key, seen in self._seen.items()
            if key.kind is kind
            and namespace in (None, key.namespace)
            and seen.uid not in uids
            and not later(seen.version, version)
        ]

    def get(self, key: Key) -> ActiveObject | None:
        """Return what is known of an object that has not ended."""
        return self._unfinished.get(key)

    def of_uid(self, uid: str) -> ActiveObject | None:
        """Return what is known of the object with this uid, if it has not ended."""
        key = self._keys.get(uid)
        return None if key is None else self._unfinished.get(key)

    def key_of(self, uid: str) -> Key | None:
        """Return the key of the object with this uid, if it has not ended."""
        return self._keys.get(uid)

    def is_known(self, key: Key) -> bool:
        """Tell whether there is an object of that key, whether it has ended or not."""
        return key in self._seen

    def wait_for(self, target: Key, waiter: Key) -> None:
        """Reconcile `waiter` whenever the phase of `target` changes, for as long as `waiter` has not ended."""
        known = self._unfinished.get(waiter)
        if known is not None:
            known.awaited.add(target)
            self._waiters.setdefault(target, set()).add(waiter)

    def note_lost(self, uid: str, job_name: str, pod: LostPod) -> None:
        """Remember a pod that is gone, for as long as the object of that uid has not ended."""
        known = self.of_uid(uid)
        if known is not None:
            pods = known.lost.setdefault(job_name, {})
            pods[pod.uid] = pod
            if len(pods) > MAX_LOST:
                del pods[next(iter(pods))]
            self._of_job[self._keys[uid].namespace, job_name] = self._keys[uid]

    def lost_named(self, namespace: str, job_name: str) -> list[LostPod]:
        """Return the pods that are gone of all Jobs that bear or bore a name."""
        key = self._of_job.get((namespace, job_name))
        return [] if key is None else list(self._unfinished[key].lost[job_name].values())

    def unfinished(self) -> list[Key]:
        """Return the keys of all objects that have not ended."""
        return list(self._unfinished)

    def phases(self) -> Counter[tuple[str, str, str]]:
        """Return the number of objects by kind, namespace and phase."""
        return Counter(self._counts)

    def take_expired(self, now: float) -> list[Key]:
        """Return the keys of the objects whose time to live is over, each of them once."""
        due = []
        while self._expiring and self._expiring[0][0] <= now:
            when, key = heapq.heappop(self._expiring)
            if self._expires_at(key) == when:
                due.append(key)
        return due

    def _expires_at(self, key: Key) -> float | None:
        seen = self._seen.get(key)
        return None if seen is None else seen.expires


def _is_over(kind: Kind, body: dict[str, Any]) -> bool:
    """Return whether nothing is left to do: the object has ended, and the status answers a retry and a changed spec.

    A server never ends, whatever its phase. Until the status has the generation of a changed spec, tools show the
    object as unsettled, and `kubectl wait` hangs.
    """
    status = body.get("status") or {}
    if kind not in JOB_KINDS or status.get("phase") not in FINAL_PHASES:
        return False
    generation = body["metadata"].get("generation")
    if status.get("observedGeneration", generation) != generation:
        return False
    mark = retry_mark((body["metadata"].get("annotations") or {}).get(RETRY_ANNOTATION))
    return mark in (None, status.get("observedRetry"))


def _changed(before: Seen | None, seen: Seen) -> bool:
    return before is None or (before.phase, before.answers) != (seen.phase, seen.answers)


def _answers(body: dict[str, Any]) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or ()
    available = (item for item in conditions if item.get("type") == ServerCondition.AVAILABLE.value)
    return any(item.get("status") == ConditionStatus.TRUE.value for item in available)
