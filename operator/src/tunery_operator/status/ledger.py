"""Write the attempt history: an entry for each pod, opened when its container starts and closed when it ends.

An attempt is a pod whose container started; pods that train together are one attempt, each with an entry of its own.
Totals are added in the write that closes an entry. Restarts of the operator and new Jobs change nothing, since nothing
is remembered elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from tunery_api.names import child_name
from tunery_api.reasons import ExitCode
from tunery_api.runspec import Task
from tunery_api.status import ATTEMPTS_KEPT, GENERATIONS_KEPT
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.attempt_history import (
    DISRUPTIONS,
    ENDS_WITHOUT_FAULT,
    EVICTED,
    NOT_NEEDED,
    PEER_ABORTED,
    POD_DELETED,
    SUCCEEDED,
    attempt_numbers,
    attempts,
    cause_of,
    first_ended,
    is_failure,
    last_cause,
    newest_attempt,
    seconds_outside,
    spans,
)
from tunery_operator.observed.metadata import format_time, parse_time
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.status.attempt_endings import Termination, ending_of, ending_of_lost, how_it_ended, record_stop
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.reported_progress import has_begun
from tunery_operator.status.snapshot import Snapshot

Entry = dict[str, Any]
"""One of status.attemptHistory."""

_NOT_FOR_SURE: Final = ENDS_WITHOUT_FAULT - {EVICTED, SUCCEEDED, NOT_NEEDED}
"""Ends of which only the Job controller knows whether they count as a retry."""

_ENDED: Final = "endTime"
_INDEX: Final = "index"
_ATTEMPT: Final = "attempt"


def keep_ledger(draft: StatusBuilder) -> bool:
    """Write an entry for each pod that has started, and close those of the pods that have ended; return False."""
    snapshot = draft.snapshot
    history: list[Entry] = [dict(entry) for entry in draft.fields.get("attemptHistory") or ()]
    seen: dict[str, PodView | LostPod] = {lost.uid: lost for lost in snapshot.lost_pods}
    seen |= {pod.uid: pod for pod in _pods(snapshot)}
    new = _unknown(seen.values(), history, draft)
    count = int(draft.fields.get("attempts") or 0)
    for pod in sorted(new, key=lambda pod: pod.started_at or snapshot.now):
        number = count + 1 if pod.index is None else _attempt_of(pod, history, count, snapshot.main)
        entry = _entry(pod, number)
        if pod.index is not None and not has_begun(snapshot):
            _include_waiting(entry, history, {pod.uid for pod in _pods(snapshot) if pod.running and not pod.deleting})
        history.append(entry)
        count = max(count, number)
    history.sort(key=lambda entry: (str(entry["startTime"]), int(entry.get(_INDEX) or 0)))
    first = [entry for entry in history if not entry.get(_INDEX)] or history
    _name_pod(draft, first[-1] if new else None)
    if not history:
        return False
    draft.put(attempts=count)
    draft.fields.setdefault("startTime", history[0]["startTime"])
    record_stop(history, _pods(snapshot), snapshot, draft.conditions)
    for entry, ending in _endings(draft, history):
        _close(draft, entry, _in_its_attempt(draft, entry, ending, history), history)
    draft.fields["attemptHistory"] = _newest_entries(history)
    return False


def _newest_entries(history: Sequence[Entry]) -> list[Entry]:
    """Return the entries that the status has room for: of several pods whole attempts, and all that run."""
    room = max(ATTEMPTS_KEPT, GENERATIONS_KEPT * (1 + max(int(entry.get(_INDEX) or 0) for entry in history)))
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


def _include_waiting(opened: Entry, history: Iterable[Entry], running: set[str]) -> None:
    """Move the pods that wait for their peers to the attempt that a new pod opens: they train in that one."""
    for entry in history:
        if entry.get(_ATTEMPT) == opened[_ATTEMPT] - 1 and entry["uid"] in running:
            entry[_ATTEMPT] = opened[_ATTEMPT]


def _name_pod(draft: StatusBuilder, opened: Entry | None) -> None:
    """Write the name of the newest pod, also while it waits; if it is gone already, that of the newest entry."""
    main = draft.snapshot.main
    if main is not None and main.last is not None:
        draft.put(podName=main.last.name)
    elif opened is not None:
        draft.put(podName=opened["pod"])


def close_ledger(draft: StatusBuilder, reason: str) -> None:
    """Close all open entries as the object ends: its pods are deleted, and the operator follows them no longer."""
    history = [dict(entry) for entry in draft.fields.get("attemptHistory") or ()]
    for entry in history:
        if _ENDED not in entry:
            others = (item for item in history if _ATTEMPT in entry and item.get(_ATTEMPT) == entry[_ATTEMPT])
            left = reason != SUCCEEDED and cause_of(others) is not None
            _close(draft, entry, Termination(draft.snapshot.now, PEER_ABORTED if left else reason), history)
    draft.put(attemptHistory=history or None)


def _pods(snapshot: Snapshot) -> list[PodView]:
    """Return the pods that train or merge, of this Job and of earlier ones."""
    preflight = child_name(snapshot.owner.key.name, Task.PREFLIGHT.value)
    earlier = [pod for pod in snapshot.leftovers if pod.job != preflight]
    return [*earlier, *(snapshot.main.pods if snapshot.main is not None else ())]


def _unknown(
    pods: Iterable[PodView | LostPod], history: Sequence[Entry], draft: StatusBuilder
) -> list[PodView | LostPod]:
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


def _ending(draft: StatusBuilder, entry: Entry, following: datetime | None) -> Termination | None:
    """Return how an attempt ended, or None while its pod runs."""
    snapshot = draft.snapshot
    pod = next((pod for pod in _pods(snapshot) if pod.uid == entry["uid"]), None)
    if pod is not None:
        return ending_of(pod, snapshot, draft.conditions)
    lost = next((lost for lost in snapshot.lost_pods if lost.uid == entry["uid"]), None)
    return ending_of_lost(entry, lost, following, snapshot, draft.conditions)


def _endings(draft: StatusBuilder, history: Sequence[Entry]) -> list[tuple[Entry, Termination]]:
    """Return the open entries whose pods have ended, with their ends, the earliest first."""
    found = []
    for place, entry in enumerate(history):
        if _ENDED not in entry:
            after = (item for item in history[place + 1 :] if item.get(_INDEX) == entry.get(_INDEX))
            following = next((parse_time(item["startTime"]) for item in after), None)
            ending = _ending(draft, entry, following)
            found += [(entry, ending)] if ending is not None else []
    return sorted(found, key=lambda each: each[1].time)


def _in_its_attempt(draft: StatusBuilder, entry: Entry, ending: Termination, history: Iterable[Entry]) -> Termination:
    """Return the end of a pod with the reason that it has among the pods of its attempt.

    While the first pod publishes, no other pod is needed. After one pod has ended for a reason of its own, the Job
    controller deletes the others.
    """
    main = draft.snapshot.main
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


def _close(draft: StatusBuilder, entry: Entry, ending: Termination, history: Iterable[Entry]) -> None:
    """Write down the end of a pod; what ran at a time, as pods that work together do, counts once as seconds."""
    others = list(spans(history)) if _INDEX in entry else []
    started = parse_time(entry["startTime"]) or ending.time
    seconds = max(0, int((ending.time - started).total_seconds()))
    gpu_seconds = seconds * draft.snapshot.gpus
    entry |= {_ENDED: format_time(max(started, ending.time)), "reason": ending.reason, "seconds": seconds}
    if ending.exit_code is not None:
        entry["exitCode"] = ending.exit_code
    draft.add("runSeconds", int(seconds_outside(started, started + timedelta(seconds=seconds), others)))
    if draft.snapshot.gpus:
        entry["gpuSeconds"] = gpu_seconds
        draft.add("gpuSeconds", gpu_seconds)


# What the deadline is compared with


def run_seconds(status: Mapping[str, Any], pods: Iterable[PodView | LostPod], now: datetime) -> float:
    """Return how many seconds all attempts ran until now: those that were written down as ended, and the others."""
    history = status.get("attemptHistory") or ()
    known = {entry["uid"] for entry in history if _ENDED in entry}
    opened = {entry["uid"]: parse_time(entry["startTime"]) for entry in history}
    before = _listed_since(status, history)
    ran, running = list(spans(history)), 0.0
    for pod in pods:
        if pod.started_at is None or pod.uid in known or (before is not None and pod.started_at <= before):
            continue
        started, until = opened.get(pod.uid) or pod.started_at, _until(pod, now)
        running += seconds_outside(started, until, ran if pod.index is not None else ())
        ran.append((started, until))
    return float(status.get("runSeconds") or 0) + running


def _until(pod: PodView | LostPod, now: datetime) -> datetime:
    """Return until when a pod ran or runs; one that outlives its grace period does so on a node that is lost."""
    if isinstance(pod, LostPod):
        return (pod.started_at or now) + timedelta(seconds=pod.seconds)
    return pod.finished_at or min(now, pod.deleted_at or now)


def deadline_left(snapshot: Snapshot) -> float | None:
    """Return how many seconds the pods of an object may still run; None: without end."""
    if snapshot.deadline_seconds is None:
        return None
    pods = _pods(snapshot)
    # Those, too, that are gone and whose end is not written down yet.
    unwritten = open_attempts(snapshot.status) - {pod.uid for pod in pods}
    lost = [pod for pod in snapshot.lost_pods if pod.uid in unwritten]
    return snapshot.deadline_seconds - run_seconds(snapshot.status, [*pods, *lost], snapshot.now)


def open_attempts(status: Mapping[str, Any]) -> set[str]:
    """Return the uids of the attempts whose end is not written down yet."""
    return {entry["uid"] for entry in status.get("attemptHistory") or () if _ENDED not in entry}


def gone_cause(status: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any] | None:
    """Return the entry of the pod that the last attempt of a Job ended for, if that pod is gone, else None."""
    cause = last_cause(status)
    if cause is None or cause["startTime"] < attempt.job.created or cause["uid"] in {pod.uid for pod in attempt.pods}:
        return None
    later = any(pod.finished and pod.started_at is None and pod.created > cause["startTime"] for pod in attempt.pods)
    return None if later else cause


def root_cause_pod(status: Mapping[str, Any], attempt: Attempt) -> PodView | None:
    """Return the pod that the newest attempt has failed for, if it is still there; of one node the newest failed pod.

    A pod without an entry failed before its container started.
    """
    if attempt.job.nodes == 1:
        return attempt.last_failed
    cause = first_ended(newest_attempt(status)) or {"uid": None}
    found = next((pod for pod in attempt.pods if pod.uid == cause["uid"] and not _ended_well(pod)), None)
    never_ran = (pod for pod in attempt.newest if pod.phase == "Failed" and pod.started_at is None)
    return found or next(never_ran, None)


def ended_pod(status: Mapping[str, Any], attempt: Attempt) -> PodView | None:
    """Return the pod that the newest attempt has ended for, if no other pod follows it yet; of one node its newest."""
    if attempt.job.nodes == 1:
        pod = attempt.last
        return pod if pod is not None and (pod.finished or pod.finished_at is not None) else None
    found = root_cause_pod(status, attempt)
    return found if found in attempt.newest else None


def _ended_well(pod: PodView) -> bool:
    return pod.exit_code == ExitCode.OK or pod.phase == "Succeeded"


def same_end_twice(status: Mapping[str, Any], pods: Iterable[PodView], reason: str) -> bool:
    """Tell whether the two newest attempts of a Job ended for `reason`; disruptions are passed over."""
    uids = {pod.uid for pod in pods}
    own = ([entry for entry in entries if entry["uid"] in uids] for entries in attempts(status))
    ends = [end for entries in own if (end := cause_of(entries)) is not None]
    return [end for end in ends if end not in DISRUPTIONS and end != PEER_ABORTED][-2:] == [reason, reason]


def of_one_attempt(status: Mapping[str, Any], attempt: Attempt) -> bool:
    """Tell whether the running pods of a Job are of one attempt: an older pod may still store its checkpoint."""
    numbers = attempt_numbers(status)
    return len({numbers[pod.uid] for pod in attempt.newest if pod.running and pod.uid in numbers}) < 2


def failed_too_often(status: Mapping[str, Any], attempt: Attempt) -> bool:
    """Tell whether several pods have failed as attempts more often than the Job retries."""
    retries = attempt.job.retries
    return retries is not None and failed_attempts(status, attempt) > retries


def failed_attempts(status: Mapping[str, Any], attempt: Attempt) -> int:
    """Return how many attempts of a Job of several pods have failed, however many pods of each have failed.

    Attempts that the history has no room for are counted by their pods: each attempt has one pod of each index.
    """
    causes = [cause for entries in attempts(status) if (cause := first_ended(entries)) is not None]
    listed = [cause for cause in causes if cause["startTime"] >= attempt.job.created and is_failure(cause)]
    since, made, cut = _listed_since(status, status.get("attemptHistory") or ()), Counter[int | None](), set()
    for pod in attempt.pods:
        made[pod.index] += 1
        if since is not None and pod.started_at is not None and pod.started_at < since and _has_failed(pod):
            cut.add(made[pod.index])
    return len(listed) + len(cut)


def _has_failed(pod: PodView) -> bool:
    """Tell whether the end of a pod is a failure by the rules of its Job."""
    free = pod.deleting or pod.disruption is not None or pod.exit_code == ExitCode.PEER_LOST
    return pod.phase == "Failed" and not free


def ends_its_job(draft: StatusBuilder, attempt: Attempt, pod: PodView) -> bool:
    """Tell whether no attempt follows one whose container has failed, though its Job ends some seconds later."""
    if pod.exit_code == ExitCode.USER_ERROR:
        return True
    retries = attempt.job.retries
    if attempt.job.nodes > 1:
        return failed_too_often(draft.fields, attempt)
    failed = [each for each in attempt.pods if each.phase == "Failed" or each.exit_code not in (None, 0)]
    counted = [each for each in failed if how_it_ended(each, draft.snapshot, draft.conditions) not in DISRUPTIONS]
    return pod in counted and retries is not None and len(counted) > retries


def retries_used(status: Mapping[str, Any], attempt: Attempt) -> int | None:
    """Return how many of its Job's retries the failed attempts use up, or None if that is not known for sure.

    The Job controller also counts pods that were deleted or suspended, in ways of its own.
    """
    job, history = attempt.job, status.get("attemptHistory") or ()
    before, there = _listed_since(status, history), {pod.uid for pod in attempt.pods}
    created, charged = parse_time(job.created), [pod for pod in attempt.pods if pod.disruption is None]
    if job.retries is None or (before is not None and created is not None and before > created):
        return None
    for entry in history:
        end = entry.get("reason", SUCCEEDED) if entry["startTime"] >= job.created else SUCCEEDED
        known = end in DISRUPTIONS | {SUCCEEDED, NOT_NEEDED, PEER_ABORTED}
        if end in _NOT_FOR_SURE or not (known or entry["uid"] in there):
            return None
    if any(pod.finished and pod.deleting and pod.exit_code != ExitCode.PEER_LOST for pod in charged):
        return None
    if job.nodes > 1:
        return failed_attempts(status, attempt)
    failed = sum(bool(pod.exit_code) or pod.phase == "Failed" for pod in charged)
    return failed if failed >= job.failed else None
