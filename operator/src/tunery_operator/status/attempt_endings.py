"""How an attempt ended: one word for the ledger, and the time it ended at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tunery_api.failures import Failure
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import edit, retry
from tunery_api.status import ConditionType
from tunery_operator.observed.attempt_history import (
    EVICTED,
    PEER_ABORTED,
    POD_DELETED,
    PREEMPTED,
    STOPPED,
    SUCCEEDED,
    SUSPENDED,
    VANISHED,
)
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import parse_time
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.diagnosis import GONE, LOST_NODE, failure, of_role, pod_failure
from tunery_operator.status.messages import reported_failure
from tunery_operator.status.snapshot import Snapshot

_DISRUPTION_ENDS: Final = {
    "PreemptionByScheduler": PREEMPTED,
    "PreemptionByKubeScheduler": PREEMPTED,
    "EvictionByEvictionAPI": EVICTED,
}
"""Reasons of DisruptionTarget that are no failure of anything."""
_DELETED: Final = (
    retry("Find what deletes its pods; use suspend to pause a job, and kubectl drain to empty a node"),
    edit("Raise retries, as each deletion counts as a retry", "retries"),
)


@dataclass(frozen=True, slots=True)
class Termination:
    """The end of an attempt."""

    time: datetime
    reason: str
    exit_code: int | None = None


def ending_of(pod: PodView, snapshot: Snapshot, conditions: Conditions) -> Termination | None:
    """Return how a pod that is there ended, or None while it has not ended."""
    if pod.finished_at is not None:
        return Termination(pod.finished_at, how_it_ended(pod, snapshot, conditions), pod.exit_code)
    if not pod.finished or pod.started_at is None:
        return None
    found = _first_since(pod.started_at, snapshot, (pod.disrupted_at, pod.deleted_at))
    return Termination(found or max(pod.started_at, snapshot.now), how_it_ended(pod, snapshot, conditions))


def ending_of_lost(
    entry: Mapping[str, Any],
    lost: LostPod | None,
    following: datetime | None,
    snapshot: Snapshot,
    conditions: Conditions,
) -> Termination:
    """Return how a pod ended that is gone; `following` is when the next attempt started.

    The best evidence of when: what was seen as it went; the pod's last report; then what came after it.
    """
    started, stopped = parse_time(entry["startTime"]), _why_stopped(entry["uid"], snapshot, conditions)
    if started is None:
        return Termination(snapshot.now, "Unknown")
    if lost is not None and lost.started_at is not None:
        echo = lost.exit_code == ExitCode.PEER_LOST
        disrupted = None if echo else _DISRUPTION_ENDS.get(lost.disruption or "")
        reason = disrupted or stopped or (PEER_ABORTED if echo else _deleted(started, snapshot))
        if lost.disruption in LOST_NODE and not echo:
            reason = FailureReason.NODE_LOST.value
        return Termination(max(started, _end_of(lost, lost.started_at)), reason, lost.exit_code)
    job = snapshot.main.job if snapshot.main is not None else None
    found = _first_since(started, snapshot, (following, job.ended_at if job is not None else None))
    # While no operator was at work nobody knows what ran: such seconds are not charged.
    unseen = max(started, min(snapshot.now, snapshot.watched_before or snapshot.now))
    return Termination(found or unseen, stopped or VANISHED)


def _end_of(lost: LostPod, started: datetime) -> datetime:
    return datetime.fromtimestamp(started.timestamp() + lost.seconds, tz=started.tzinfo)


def _first_since(started: datetime, snapshot: Snapshot, others: tuple[datetime | None, ...]) -> datetime | None:
    """Return the pod's last report, or else the first of `others` between its start and now; None: neither."""
    report = snapshot.progress.last_updated_time if snapshot.progress is not None else None
    written = (snapshot.status.get("progress") or {}).get("lastUpdateTime")
    reports: list[datetime] = [time for time in (parse_time(report), parse_time(written)) if time is not None]
    newest: Iterator[datetime] = (time for time in (*sorted(reports, reverse=True), *others) if time is not None)
    return next((time for time in newest if started < time <= snapshot.now), None)


def how_it_ended(pod: PodView, snapshot: Snapshot, conditions: Conditions) -> str:
    """Return one word for how a pod that has ended did so: Succeeded, who stopped it, or a failure reason."""
    if pod.exit_code == 0 or pod.phase == "Succeeded":
        return SUCCEEDED
    if reported_failure(pod.termination_message) is None:
        # What has ended as an echo may be taken away after its end: that disrupts nothing.
        echo = pod.exit_code == ExitCode.PEER_LOST
        if pod.disruption in _DISRUPTION_ENDS and not echo:
            return _DISRUPTION_ENDS[pod.disruption]
        if pod.deleting and (pod.disruption is None or echo) and pod.exit_reason != "OOMKilled":
            return _why_stopped(pod.uid, snapshot, conditions) or (
                PEER_ABORTED if echo else _deleted(pod.started_at, snapshot)
            )
    return str(pod_failure(pod).reason)


def record_stop(
    history: Iterable[dict[str, Any]], pods: Iterable[PodView], snapshot: Snapshot, conditions: Conditions
) -> None:
    """Record in each open attempt why its pod is being stopped: the cause may be gone before the pod has ended."""
    held = snapshot.main is None or snapshot.main.job.suspend
    reason = _who_stopped(snapshot, conditions) if held else None
    spared = {pod.uid for pod in pods if not pod.deleting}
    for entry in history:
        if "endTime" in entry:
            continue
        if reason is not None:
            entry.setdefault("reason", reason)
        elif entry["uid"] in spared:
            entry.pop("reason", None)


def _deleted(started: datetime | None, snapshot: Snapshot) -> str:
    """Return how a pod ended that was deleted; where its Job is gone, Tunery has deleted both."""
    made = parse_time(snapshot.main.job.created) if snapshot.main is not None else None
    return STOPPED if made is None or (started is not None and started < made) else POD_DELETED


def _why_stopped(uid: str, snapshot: Snapshot, conditions: Conditions) -> str | None:
    """Return why a pod was stopped: the recorded reason, else what stops the pods of the object now."""
    history = snapshot.status.get("attemptHistory") or ()
    recorded = next((entry.get("reason") for entry in history if entry["uid"] == uid), None)
    return recorded if recorded in (SUSPENDED, PREEMPTED) else _who_stopped(snapshot, conditions)


def _who_stopped(snapshot: Snapshot, conditions: Conditions) -> str | None:
    """Return what stops the pods of an object now: spec.suspend or the queue; None: neither."""
    job = snapshot.main.job if snapshot.main is not None else None
    if snapshot.suspend or (job is not None and job.suspended_by_us):
        return SUSPENDED
    if conditions.reason(ConditionType.QUOTA_RESERVED) == PREEMPTED:
        return PREEMPTED
    return PREEMPTED if job is not None and job.suspend and job.queue is not None else None


def failure_of_gone(job: JobView, entry: Mapping[str, Any], attempts: int) -> Failure:
    """Return why a Job has failed whose last attempt ended for a pod that is gone, by its entry in the ledger."""
    pod, reason = entry["pod"], str(entry["reason"])
    if reason == POD_DELETED:
        where = f" (attempt {entry.get('attempt', attempts)})" if attempts > 1 else ""
        remedies, text = _DELETED, f"pod {pod} was deleted by another client{where}, and no retry is left"
    else:
        remedies, text = GONE, f"Job {job.name} failed ({job.failed_reason}: {job.failed_message}) and pod {pod}"
        text = f"{text} is gone; the last attempt's end: {reason}"
    return of_role(failure(FailureReason.RETRIES_EXHAUSTED, text, *remedies), job.role)
