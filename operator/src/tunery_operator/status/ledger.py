"""The ledger of attempts: every pod that ran, written into the status when it starts and closed when it ends.

An attempt is a pod whose container started. Totals are added up once, as the attempt is closed, and in the same write:
whoever computes again finds it closed. Restarts of the operator and new Jobs change nothing, since nothing is
remembered elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tunery_api.names import child_name
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import Task
from tunery_api.status import ATTEMPTS_KEPT
from tunery_operator.status.attempt_endings import Ending, ending_of, ending_of_lost, how_it_ended
from tunery_operator.status.draft import Draft
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.views.attempt import EVICTED, PREEMPTED, STOPPED, SUSPENDED, VANISHED, Attempt
from tunery_operator.views.clock import format_time, parse_time
from tunery_operator.views.pod import LostPod, PodView

Entry = dict[str, Any]
"""One of status.attemptHistory."""

_ENDED: Final = "endTime"
PASSED_OVER: Final = frozenset(
    {SUSPENDED, PREEMPTED, EVICTED, STOPPED, VANISHED, FailureReason.NODE_LOST.value, FailureReason.NODE_PRESSURE.value}
)
"""Ends that say nothing of the run itself."""


def keep_ledger(draft: Draft) -> bool:
    """Open an attempt for each pod that has started, and close those that have ended; never the last word."""
    snapshot = draft.snapshot
    history: list[Entry] = [dict(entry) for entry in draft.fields.get("attemptHistory") or ()]
    seen: dict[str, PodView | LostPod] = {lost.uid: lost for lost in snapshot.lost_pods}
    seen |= {pod.uid: pod for pod in _pods(snapshot)}
    new = _unknown(seen.values(), history, draft)
    history = sorted([*history, *map(_entry, new)], key=lambda entry: str(entry["startTime"]))
    _name_pod(draft, history[-1] if new else None)
    if not history:
        return False
    draft.add("attempts", len(new))
    draft.fields.setdefault("startTime", history[0]["startTime"])
    for index, entry in enumerate(history):
        if _ENDED not in entry:
            following = parse_time(history[index + 1]["startTime"]) if index + 1 < len(history) else None
            _close(draft, entry, _ending(draft, entry, following))
    draft.fields["attemptHistory"] = history[-ATTEMPTS_KEPT:]
    return False


def _name_pod(draft: Draft, opened: Entry | None) -> None:
    """Tell which pod is the newest, also while it waits; of one that is gone already what the ledger has opened."""
    main = draft.snapshot.main
    if main is not None and main.last is not None:
        draft.put(podName=main.last.name)
    elif opened is not None:
        draft.put(podName=opened["pod"])


def close_ledger(draft: Draft, reason: str) -> None:
    """Close what is open as the object ends: its pods have been told to end, and nobody looks at them again."""
    history = [dict(entry) for entry in draft.fields.get("attemptHistory") or ()]
    for entry in history:
        if _ENDED not in entry:
            _close(draft, entry, Ending(draft.snapshot.now, reason))
    draft.put(attemptHistory=history or None)


def _pods(snapshot: Snapshot) -> list[PodView]:
    """Return the pods that train or merge, of this Job and of earlier ones."""
    preflight = child_name(snapshot.owner.key.name, Task.PREFLIGHT.value)
    earlier = [pod for pod in snapshot.leftovers if pod.job != preflight]
    return [*earlier, *(snapshot.main.pods if snapshot.main is not None else ())]


def _unknown(pods: Iterable[PodView | LostPod], history: Sequence[Entry], draft: Draft) -> list[PodView | LostPod]:
    """Return the pods that started and were never counted; what is no longer in the history started before it."""
    known = {entry["uid"] for entry in history}
    before = _listed_since(draft.fields, history)
    return [
        pod
        for pod in pods
        if pod.started_at is not None and pod.uid not in known and (before is None or pod.started_at > before)
    ]


def _listed_since(status: Mapping[str, Any], history: Sequence[Entry]) -> datetime | None:
    """Return the start of the oldest attempt in the history if older ones were dropped from it, else None."""
    truncated = int(status.get("attempts") or 0) > len(history)
    return parse_time(history[0]["startTime"]) if history and truncated else None


def _entry(pod: PodView | LostPod) -> Entry:
    entry: Entry = {"uid": pod.uid, "pod": pod.name}
    if pod.node is not None:
        entry["node"] = pod.node
    started = pod.started_at
    return entry if started is None else {**entry, "startTime": format_time(started)}


def _ending(draft: Draft, entry: Entry, following: datetime | None) -> Ending | None:
    """Return how an attempt ended, or None while its pod runs."""
    snapshot = draft.snapshot
    pod = next((pod for pod in _pods(snapshot) if pod.uid == entry["uid"]), None)
    if pod is not None:
        return ending_of(pod, snapshot, draft.conditions)
    started = parse_time(entry["startTime"])
    if started is None:
        return Ending(snapshot.now, "Unknown")
    lost = next((lost for lost in snapshot.lost_pods if lost.uid == entry["uid"]), None)
    return ending_of_lost(started, lost, following, snapshot, draft.conditions)


def _close(draft: Draft, entry: Entry, ending: Ending | None) -> None:
    if ending is None:
        return
    started = parse_time(entry["startTime"]) or ending.time
    seconds = max(0, int((ending.time - started).total_seconds()))
    gpu_seconds = seconds * draft.snapshot.gpus
    entry |= {_ENDED: format_time(max(started, ending.time)), "reason": ending.reason, "seconds": seconds}
    draft.add("runSeconds", seconds)
    if draft.snapshot.gpus:
        entry["gpuSeconds"] = gpu_seconds
        draft.add("gpuSeconds", gpu_seconds)


# What the deadline is compared with


def run_seconds(status: Mapping[str, Any], pods: Iterable[PodView], now: datetime) -> float:
    """Return how many seconds all attempts ran until now: those that were written down as ended, and the others."""
    history = status.get("attemptHistory") or ()
    known = {entry["uid"] for entry in history if _ENDED in entry}
    opened = {entry["uid"]: parse_time(entry["startTime"]) for entry in history}
    before = _listed_since(status, history)
    running = sum(
        max(0.0, (_until(pod, now) - (opened.get(pod.uid) or pod.started_at)).total_seconds())
        for pod in pods
        if pod.started_at is not None and pod.uid not in known and (before is None or pod.started_at > before)
    )
    return float(status.get("runSeconds") or 0) + running


def _until(pod: PodView, now: datetime) -> datetime:
    """Return until when a pod ran or runs; one that outlives its grace period does so on a node that is lost."""
    return pod.finished_at or min(now, pod.deleted_at or now)


def deadline_left(snapshot: Snapshot) -> float | None:
    """Return how many seconds the pods of an object may still run; None: without end."""
    if snapshot.deadline_seconds is None:
        return None
    pods = _pods(snapshot)
    ran = run_seconds(snapshot.status, pods, snapshot.now) + _seconds_of_lost(snapshot, {pod.uid for pod in pods})
    return snapshot.deadline_seconds - ran


def _seconds_of_lost(snapshot: Snapshot, known: Collection[str]) -> float:
    """Return how long the pods ran that are gone and whose end is not written down yet."""
    unwritten = open_attempts(snapshot.status) - set(known)
    return sum(lost.seconds for lost in snapshot.lost_pods if lost.uid in unwritten)


def open_attempts(status: Mapping[str, Any]) -> set[str]:
    """Return the uids of the attempts whose end is not written down yet."""
    return {entry["uid"] for entry in status.get("attemptHistory") or () if _ENDED not in entry}


def last_end(status: Mapping[str, Any]) -> str | None:
    """Return how the newest attempt ended; None while it has not, or where there was none."""
    history = status.get("attemptHistory")
    return history[-1].get("reason") if history else None


def same_end_twice(status: Mapping[str, Any], pods: Iterable[PodView], reason: str) -> bool:
    """Tell whether the two newest attempts of a Job ended for `reason`; suspensions and the like are passed over."""
    uids = {pod.uid for pod in pods}
    ends = [entry["reason"] for entry in status.get("attemptHistory") or () if entry["uid"] in uids and _ENDED in entry]
    return [end for end in ends if end not in PASSED_OVER][-2:] == [reason, reason]


def ends_its_job(draft: Draft, attempt: Attempt, pod: PodView) -> bool:
    """Tell whether no attempt follows one whose container has failed, though its Job ends some seconds later only."""
    if pod.exit_code == ExitCode.USER_ERROR:
        return True
    retries = attempt.job.retries
    failed = [each for each in attempt.pods if each.phase == "Failed" or each.exit_code not in (None, 0)]
    counted = [each for each in failed if how_it_ended(each, draft.snapshot, draft.conditions) not in PASSED_OVER]
    return pod in counted and retries is not None and len(counted) > retries
