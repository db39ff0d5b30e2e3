"""End an object at its deadline, and compute when to reconcile again without an event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit
from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_operator.observed.attempt import (
    Attempt,
    seconds_outside,
    spans,
)
from tunery_operator.observed.metadata import parse_time
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.status.attempts import _ENDED, listed_since, working_pods
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.conditions import OUT_OF_TIME
from tunery_operator.status.diagnosis import NODE_GRACE, failure, is_node_lost
from tunery_operator.status.main_job import seconds_until_silent
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.suspension import SAVES

MIN_SECONDS: Final = 10.0
MAX_SECONDS: Final = 60.0
"""Between two reads of the events about a pod that does not start, or a Job that is rejected: the longer that lasts,
the longer the pause, since a thousand jobs may wait for the same thing."""
_SHARE: Final = 6
RENDEZVOUS_SECONDS: Final = 20.0
"""Between two checks of pods that run and have not met yet: their Service may have been deleted."""
_STAGES: Final = frozenset({ConditionType.RUNNING.value, ConditionType.PREFLIGHT.value, ConditionType.SEARCHING.value})


def check_deadline(builder: StatusBuilder) -> bool:
    """End the object once its pods have run for longer than the deadline, and none stores a checkpoint.

    Return True also while a pod stores one.
    """
    limit, left = builder.snapshot.deadline_seconds, deadline_left(builder.snapshot)
    if limit is None or left is None or left > 0:
        return False
    pod = _saving(builder.snapshot)
    if pod is not None:
        text = f"spec.activeDeadlineSeconds ({limit} s) has expired; pod {pod.name} is terminating{SAVES}"
        builder.conditions.set(ConditionType.RUNNING, True, OUT_OF_TIME, text)
        return True
    ran = int(limit - left)
    text = f"pods ran for {ran} s in all, and spec.activeDeadlineSeconds is {limit}; waiting is not counted"
    remedy = edit(f"Raise activeDeadlineSeconds above {ran} by the time that is still needed", "activeDeadlineSeconds")
    builder.fail(failure(FailureReason.DEADLINE_EXCEEDED, text, remedy))
    return True


def _saving(snapshot: Snapshot) -> PodView | None:
    """Return a deleted pod that may still store a checkpoint, else None.

    A pod on a node that does not answer, or that outlives its grace period, is not waited for.
    """
    if snapshot.main is not None or not snapshot.definition.has_status_field("checkpoint"):
        return None
    pods = (pod for pod in snapshot.leftovers if pod.running and pod.deleting)
    return next((pod for pod in pods if not is_node_lost(pod, snapshot.now)), None)


# What the deadline is compared with


def run_seconds(status: Mapping[str, Any], pods: Iterable[PodView | LostPod], now: datetime) -> float:
    """Return how many seconds all attempts ran until now: closed and open ones."""
    history = status.get("attemptHistory") or ()
    known = {entry["uid"] for entry in history if _ENDED in entry}
    opened = {entry["uid"]: parse_time(entry["startTime"]) for entry in history}
    before = listed_since(status, history)
    ran, running = list(spans(history)), 0.0
    for pod in pods:
        if pod.started_at is None or pod.uid in known or (before is not None and pod.started_at <= before):
            continue
        started, until = opened.get(pod.uid) or pod.started_at, _until(pod, now)
        running += seconds_outside(started, until, ran if pod.index is not None else ())
        ran.append((started, until))
    return float(status.get("runSeconds") or 0) + running


def _until(pod: PodView | LostPod, now: datetime) -> datetime:
    """Return until when a pod ran or runs; after its grace period its node counts as lost."""
    if isinstance(pod, LostPod):
        return (pod.started_at or now) + timedelta(seconds=pod.seconds)
    return pod.finished_at or min(now, pod.deleted_at or now)


def deadline_left(snapshot: Snapshot) -> float | None:
    """Return how many seconds the pods of an object may still run; None: no limit."""
    if snapshot.deadline_seconds is None:
        return None
    pods = working_pods(snapshot)
    # Also pods that are gone and whose end is not in the status yet.
    unwritten = open_attempts(snapshot.status) - {pod.uid for pod in pods}
    lost = [pod for pod in snapshot.lost_pods if pod.uid in unwritten]
    return snapshot.deadline_seconds - run_seconds(snapshot.status, [*pods, *lost], snapshot.now)


def open_attempts(status: Mapping[str, Any]) -> set[str]:
    """Return the uids of the open entries of the history."""
    return {entry["uid"] for entry in status.get("attemptHistory") or () if _ENDED not in entry}


def requeue_after(snapshot: Snapshot, status: Mapping[str, Any]) -> float | None:
    """Return the seconds until time alone may change `status`, which was computed from `snapshot`; None: never."""
    if status.get("phase") in FINAL_PHASES:
        return None
    return min(_delays(snapshot, status), default=None)


def _delays(snapshot: Snapshot, status: Mapping[str, Any]) -> Iterator[float]:
    jobs = (snapshot.preflight, snapshot.main, snapshot.report, snapshot.publishing)
    attempts = [attempt for attempt in jobs if attempt is not None]
    pods = [pod for attempt in attempts for pod in attempt.pods] + list(snapshot.leftovers)
    left = deadline_left(snapshot)
    if left is not None and left > 0 and any(pod.running for pod in pods):
        yield left
    silence = seconds_until_silent(snapshot)
    if silence is not None and silence >= 0:
        yield silence + 1.0
    yield from _search_delays(snapshot)
    for pod in pods:
        if pod.deleted_at is not None and not pod.finished:
            grace = (pod.deleted_at + NODE_GRACE - snapshot.now).total_seconds()
            if grace >= 0:
                yield grace + 1.0
        elif pod.deleting and not pod.finished:
            # Its Job was deleted, and the pod does not show that yet.
            yield MAX_SECONDS
    for attempt in attempts:
        if _does_not_start(attempt):
            started = attempt.job.started_at or parse_time(attempt.job.created)
            yield _pause(snapshot.now, started)
    if status.get("phase") == Phase.STARTING.value and snapshot.main is not None and snapshot.main.meeting:
        yield RENDEZVOUS_SECONDS
    if snapshot.rejection is not None or snapshot.waiting_for is not None:
        yield _pause(snapshot.now, _since(status))


def _search_delays(snapshot: Snapshot) -> Iterator[float]:
    search = snapshot.search
    if search is not None and search.requeue_at is not None:
        yield max(0.0, (search.requeue_at - snapshot.now).total_seconds())
    if search is not None and search.blocker is not None:
        yield search.blocker.seconds
    if search is not None and search.owner_changed:
        # No event reports that another client restores the owner reference.
        yield MAX_SECONDS
    if search is not None and search.exhausted and not search.alive:
        # The next reconcile continues from the status that this one has written.
        yield 0.0


def _does_not_start(attempt: Attempt) -> bool:
    """Return whether a Job should have a running pod and has none, for a reason that only events have."""
    if attempt.job.suspend or attempt.job.finished:
        return False
    return attempt.missing or any(pod.started_at is None and pod.unschedulable is None for pod in attempt.newest)


def _since(status: Mapping[str, Any]) -> datetime | None:
    """Return the start of the stage that an object is in."""
    stages = [c["lastTransitionTime"] for c in status.get("conditions") or () if c["type"] in _STAGES]
    return parse_time(max(stages, default=None))


def _pause(now: datetime, since: datetime | None) -> float:
    waited = (now - since).total_seconds() if since is not None else 0.0
    return min(MAX_SECONDS, max(MIN_SECONDS, waited / _SHARE))
