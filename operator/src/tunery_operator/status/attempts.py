"""Write status.attemptHistory: an entry for each pod, opened when its container starts and closed when it ends.

An attempt is a pod whose container started; pods that train together are one attempt with an entry for each pod. The
write that closes an entry also adds to the totals. The history is stored in the status only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from tunery_api.names import child_name
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import Task
from tunery_api.status import MAX_ATTEMPTS, MAX_GENERATIONS, ConditionType
from tunery_operator.observed.attempt import (
    EVICTED,
    NOT_NEEDED,
    PEER_ABORTED,
    POD_DELETED,
    PREEMPTED,
    STOPPED,
    SUCCEEDED,
    SUSPENDED,
    VANISHED,
    Attempt,
    cause_of,
    seconds_outside,
    spans,
)
from tunery_operator.observed.metadata import format_time, parse_time
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.diagnosis import LOST_NODE, pod_failure
from tunery_operator.status.reports import has_begun, reported_failure
from tunery_operator.status.snapshot import Snapshot

Entry = dict[str, Any]
"""An entry of status.attemptHistory."""
_ENDED: Final = "endTime"
_INDEX: Final = "index"
_ATTEMPT: Final = "attempt"
_DISRUPTION_ENDS: Final = {
    "PreemptionByScheduler": PREEMPTED,
    "PreemptionByKubeScheduler": PREEMPTED,
    "EvictionByEvictionAPI": EVICTED,
}
"""Reasons of DisruptionTarget that are no failures."""


def record_attempts(builder: StatusBuilder) -> bool:
    """Write an entry for each pod that has started, and close those of the pods that have ended; return False."""
    snapshot = builder.snapshot
    history: list[Entry] = [dict(entry) for entry in builder.fields.get("attemptHistory") or ()]
    seen: dict[str, PodView | LostPod] = {lost.uid: lost for lost in snapshot.lost_pods}
    seen |= {pod.uid: pod for pod in working_pods(snapshot)}
    new = _unknown(seen.values(), history, builder)
    count = int(builder.fields.get("attempts") or 0)
    for pod in sorted(new, key=lambda pod: pod.started_at or snapshot.now):
        number = count + 1 if pod.index is None else _attempt_of(pod, history, count, snapshot.main)
        entry = _entry(pod, number)
        if pod.index is not None and not has_begun(snapshot):
            _include_waiting(entry, history, snapshot)
        history.append(entry)
        count = max(count, number)
    history.sort(key=lambda entry: (str(entry["startTime"]), int(entry.get(_INDEX) or 0)))
    first = [entry for entry in history if not entry.get(_INDEX)] or history
    _name_pod(builder, first[-1] if new else None)
    if not history:
        return False
    builder.put(attempts=count)
    builder.fields.setdefault("startTime", history[0]["startTime"])
    record_stop(history, working_pods(snapshot), snapshot, builder.conditions)
    for entry, ending in _endings(builder, history):
        _close(builder, entry, _reason_in_attempt(builder, entry, ending, history), history)
    builder.fields["attemptHistory"] = _newest_entries(history)
    return False


def _newest_entries(history: Sequence[Entry]) -> list[Entry]:
    """Return the entries that fit into the status: only complete attempts of several pods, and all that run."""
    room = max(MAX_ATTEMPTS, MAX_GENERATIONS * (1 + max(int(entry.get(_INDEX) or 0) for entry in history)))
    cut = {entry.get(_ATTEMPT) for entry in history[:-room]} - {None}
    return [entry for entry in history[-room:] if entry.get(_ATTEMPT) not in cut or _ENDED not in entry]


def _attempt_of(pod: PodView | LostPod, history: Sequence[Entry], count: int, main: Attempt | None) -> int:
    """Return which attempt a pod with an index belongs to.

    It is the newest attempt if the pod was created before that ended, and if no pod there has its index; while the
    first pod publishes, the index of another pod may come again.
    """
    newest = max((int(item[_ATTEMPT]) for item in history if _ATTEMPT in item), default=0)
    entries = [item for item in history if item.get(_ATTEMPT) == newest]
    if not entries:
        return max(newest, count) + 1
    spare = bool(pod.index) and main is not None and bool(main.job.failed_indexes_allowed)
    free = spare or all(item.get(_INDEX) != pod.index for item in entries)
    before_end = any(_ENDED not in item or pod.created <= item[_ENDED] for item in entries)
    return newest if free and before_end else max(newest, count) + 1


def _include_waiting(opened: Entry, history: Iterable[Entry], snapshot: Snapshot) -> None:
    """Move the pods that wait for their peers to the attempt that a new pod opens: they train in that one."""
    running = {pod.uid for pod in working_pods(snapshot) if pod.running and not pod.deleting}
    for entry in history:
        if entry.get(_ATTEMPT) == opened[_ATTEMPT] - 1 and entry["uid"] in running:
            entry[_ATTEMPT] = opened[_ATTEMPT]


def _name_pod(builder: StatusBuilder, opened: Entry | None) -> None:
    """Write the name of the newest pod, also while it waits; if it is gone, the pod of the newest entry."""
    main = builder.snapshot.main
    if main is not None and main.last is not None:
        builder.put(podName=main.last.name)
    elif opened is not None:
        builder.put(podName=opened["pod"])


def close_attempts(builder: StatusBuilder, reason: str) -> None:
    """Close all open entries as the object ends: its pods are deleted and no longer tracked."""
    history = [dict(entry) for entry in builder.fields.get("attemptHistory") or ()]
    for entry in history:
        if _ENDED not in entry:
            others = (item for item in history if _ATTEMPT in entry and item.get(_ATTEMPT) == entry[_ATTEMPT])
            left = reason != SUCCEEDED and cause_of(others) is not None
            _close(builder, entry, Termination(builder.snapshot.now, PEER_ABORTED if left else reason), history)
    builder.put(attemptHistory=history or None)


def working_pods(snapshot: Snapshot) -> list[PodView]:
    """Return the pods that train or merge, of this Job and of earlier ones."""
    preflight = child_name(snapshot.owner.key.name, Task.PREFLIGHT.value)
    earlier = [pod for pod in snapshot.leftovers if pod.job != preflight]
    return [*earlier, *(snapshot.main.pods if snapshot.main is not None else ())]


def _unknown(
    pods: Iterable[PodView | LostPod], history: Sequence[Entry], builder: StatusBuilder
) -> list[PodView | LostPod]:
    """Return the pods that started and have no entry; the entries that were dropped started before the history."""
    known = {entry["uid"] for entry in history}
    before = listed_since(builder.fields, history)
    return [
        pod
        for pod in pods
        if pod.started_at is not None and pod.uid not in known and (before is None or pod.started_at > before)
    ]


def listed_since(status: Mapping[str, Any], history: Sequence[Entry]) -> datetime | None:
    """Return the start of the oldest attempt in the history if older ones were dropped from it, else None."""
    if not history:
        return None
    alone = _INDEX not in history[0]
    truncated = (
        int(status.get("attempts") or 0) > len(history) if alone else min(entry[_ATTEMPT] for entry in history) > 1
    )
    return parse_time(history[0]["startTime"]) if truncated else None


def _entry(pod: PodView | LostPod, attempt: int) -> Entry:
    entry: Entry = {"uid": pod.uid, "pod": pod.name}
    if pod.node is not None:
        entry["node"] = pod.node
    if pod.started_at is not None:
        entry["startTime"] = format_time(pod.started_at)
    return entry if pod.index is None else {**entry, _INDEX: pod.index, _ATTEMPT: attempt}


def _ending(builder: StatusBuilder, entry: Entry, following: datetime | None) -> Termination | None:
    """Return how an attempt ended, or None while its pod runs."""
    snapshot = builder.snapshot
    pod = next((pod for pod in working_pods(snapshot) if pod.uid == entry["uid"]), None)
    if pod is not None:
        return termination_of(pod, snapshot, builder.conditions)
    lost = next((lost for lost in snapshot.lost_pods if lost.uid == entry["uid"]), None)
    return termination_of_lost_pod(entry, lost, following, snapshot, builder.conditions)


def _endings(builder: StatusBuilder, history: Sequence[Entry]) -> list[tuple[Entry, Termination]]:
    """Return the open entries whose pods have ended, with their ends, the earliest first."""
    found = []
    for place, entry in enumerate(history):
        if _ENDED not in entry:
            after = (item for item in history[place + 1 :] if item.get(_INDEX) == entry.get(_INDEX))
            following = next((parse_time(item["startTime"]) for item in after), None)
            ending = _ending(builder, entry, following)
            found += [(entry, ending)] if ending is not None else []
    return sorted(found, key=lambda each: each[1].time)


def _reason_in_attempt(
    builder: StatusBuilder, entry: Entry, ending: Termination, history: Iterable[Entry]
) -> Termination:
    """Return the end of a pod with the reason that it has among the pods of its attempt.

    While the first pod publishes, no other pod is needed. After one pod has ended for a reason of its own, the Job
    controller deletes the others.
    """
    main = builder.snapshot.main
    if _ATTEMPT not in entry or main is None or entry["startTime"] < main.job.created:
        return ending
    if entry[_INDEX] and main.job.failed_indexes_allowed and ending.reason != SUCCEEDED:
        return replace(ending, reason=NOT_NEEDED)
    if ending.reason != POD_DELETED:
        return ending
    others = [item for item in history if item.get(_ATTEMPT) == entry[_ATTEMPT] and _ENDED in item]
    causes = [item for item in others if item["reason"] not in (SUCCEEDED, NOT_NEEDED)]
    aborted = any(item.get("exitCode") != ExitCode.PEER_LOST for item in causes)
    return replace(ending, reason=PEER_ABORTED) if aborted else ending


def _close(builder: StatusBuilder, entry: Entry, ending: Termination, history: Iterable[Entry]) -> None:
    """Close an entry; the seconds that several pods ran at the same time count once."""
    others = list(spans(history)) if _INDEX in entry else []
    started = parse_time(entry["startTime"]) or ending.time
    seconds = max(0, int((ending.time - started).total_seconds()))
    gpu_seconds = seconds * builder.snapshot.gpus
    entry |= {_ENDED: format_time(max(started, ending.time)), "reason": ending.reason, "seconds": seconds}
    if ending.exit_code is not None:
        entry["exitCode"] = ending.exit_code
    builder.add("runSeconds", int(seconds_outside(started, started + timedelta(seconds=seconds), others)))
    if builder.snapshot.gpus:
        entry["gpuSeconds"] = gpu_seconds
        builder.add("gpuSeconds", gpu_seconds)


@dataclass(frozen=True, slots=True)
class Termination:
    """The end of an attempt."""

    time: datetime
    reason: str
    exit_code: int | None = None


def termination_of(pod: PodView, snapshot: Snapshot, conditions: Conditions) -> Termination | None:
    """Return the end of a pod that still exists, or None while it runs."""
    if pod.finished_at is not None:
        return Termination(pod.finished_at, end_reason(pod, snapshot, conditions), pod.exit_code)
    if not pod.finished or pod.started_at is None:
        return None
    found = _first_since(pod.started_at, snapshot, (pod.disrupted_at, pod.deleted_at))
    return Termination(found or max(pod.started_at, snapshot.now), end_reason(pod, snapshot, conditions))


def termination_of_lost_pod(
    entry: Mapping[str, Any],
    lost: LostPod | None,
    following: datetime | None,
    snapshot: Snapshot,
    conditions: Conditions,
) -> Termination:
    """Return the end of a pod that is gone; `following` is when the next attempt started.

    The best evidence of its time: the watch event of its deletion, its last report, then what came after it.
    """
    started, stopped = parse_time(entry["startTime"]), _recorded_stop_reason(entry["uid"], snapshot, conditions)
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
    # How long it ran while no operator watched is unknown: this time is not counted.
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


def end_reason(pod: PodView, snapshot: Snapshot, conditions: Conditions) -> str:
    """Return the reason of the end of a pod: Succeeded, what stopped it, or a failure reason."""
    if pod.exit_code == 0 or pod.phase == "Succeeded":
        return SUCCEEDED
    if reported_failure(pod.termination_message) is None:
        # A pod that ended as it lost a peer may be deleted afterwards: that is no disruption.
        echo = pod.exit_code == ExitCode.PEER_LOST
        if pod.disruption in _DISRUPTION_ENDS and not echo:
            return _DISRUPTION_ENDS[pod.disruption]
        if pod.deleting and (pod.disruption is None or echo) and pod.exit_reason != "OOMKilled":
            return _recorded_stop_reason(pod.uid, snapshot, conditions) or (
                PEER_ABORTED if echo else _deleted(pod.started_at, snapshot)
            )
    return str(pod_failure(pod).reason)


def record_stop(
    history: Iterable[dict[str, Any]], pods: Iterable[PodView], snapshot: Snapshot, conditions: Conditions
) -> None:
    """Record in each open attempt why its pod is being stopped: the cause may be gone before the pod has ended."""
    no_running_job = snapshot.main is None or snapshot.main.job.suspend
    reason = _stop_reason(snapshot, conditions) if no_running_job else None
    surviving = {pod.uid for pod in pods if not pod.deleting}
    for entry in history:
        if "endTime" in entry:
            continue
        if reason is not None:
            entry.setdefault("reason", reason)
        elif entry["uid"] in surviving:
            entry.pop("reason", None)


def _deleted(started: datetime | None, snapshot: Snapshot) -> str:
    """Return the reason of the end of a deleted pod; if its Job is gone, Tunery has deleted both.

    A Job that was resumed after the pod had started was suspended in between, unseen by the operator.
    """
    job = snapshot.main.job if snapshot.main is not None else None
    created = parse_time(job.created) if job is not None else None
    if job is None or created is None or (started is not None and started < created):
        return STOPPED
    if job.started_at is not None and started is not None and started < job.started_at:
        return SUSPENDED if job.queue is None else PREEMPTED
    return POD_DELETED


def _recorded_stop_reason(uid: str, snapshot: Snapshot, conditions: Conditions) -> str | None:
    """Return why a pod was stopped: the recorded reason, else what stops the pods of the object now."""
    history = snapshot.status.get("attemptHistory") or ()
    recorded = next((entry.get("reason") for entry in history if entry["uid"] == uid), None)
    return recorded if recorded in (SUSPENDED, PREEMPTED) else _stop_reason(snapshot, conditions)


def _stop_reason(snapshot: Snapshot, conditions: Conditions) -> str | None:
    """Return what stops the pods of an object now: spec.suspend or the queue; None: neither."""
    job = snapshot.main.job if snapshot.main is not None else None
    if snapshot.suspend or (job is not None and job.suspended_by_us):
        return SUSPENDED
    if conditions.reason(ConditionType.QUOTA_RESERVED) == PREEMPTED:
        return PREEMPTED
    return PREEMPTED if job is not None and job.suspend and job.queue is not None else None
