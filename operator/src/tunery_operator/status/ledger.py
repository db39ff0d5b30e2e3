"""The ledger of attempts: every pod that ran, written into the status when it starts and closed when it ends.

An attempt is a pod whose container started; pods that work together are one, each with an entry of its own. Totals are
added up once, as a pod is closed, and in the same write: whoever computes again finds it closed. Restarts of the
operator and new Jobs change nothing, since nothing is remembered elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from tunery_api.names import child_name
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import Task
from tunery_api.status import ATTEMPTS_KEPT, GENERATIONS_KEPT
from tunery_operator.observed.attempt import (
    ENDS_WITHOUT_FAULT,
    EVICTED,
    NOT_NEEDED,
    PEER_ABORTED,
    POD_DELETED,
    SUCCEEDED,
    Attempt,
    attempt_numbers,
    cause_of,
    first_ended,
)
from tunery_operator.observed.metadata import format_time, parse_time
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.status.attempt_endings import Termination, ending_of, ending_of_lost, how_it_ended, record_stop
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.diagnosis import is_echo
from tunery_operator.status.reported_progress import first_has_ended_well, has_begun, publishes_alone
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.spans import alone, spans

Entry = dict[str, Any]
"""One of status.attemptHistory."""

_NOT_FOR_SURE: Final = ENDS_WITHOUT_FAULT - {EVICTED, SUCCEEDED, NOT_NEEDED}
"""Ends of which only the Job controller knows whether they count as a retry."""

_ENDED: Final = "endTime"
_INDEX: Final = "index"
_ATTEMPT: Final = "attempt"
PASSED_OVER: Final = (ENDS_WITHOUT_FAULT - {SUCCEEDED, NOT_NEEDED}) | {
    FailureReason.NODE_LOST,
    FailureReason.NODE_PRESSURE,
}
"""Ends that say nothing of the run itself."""


def keep_ledger(draft: StatusBuilder) -> bool:
    """Open an attempt for each pod that has started, and close those that have ended; never the last word."""
    snapshot = draft.snapshot
    history: list[Entry] = [dict(entry) for entry in draft.fields.get("attemptHistory") or ()]
    seen: dict[str, PodView | LostPod] = {lost.uid: lost for lost in snapshot.lost_pods}
    seen |= {pod.uid: pod for pod in _pods(snapshot)}
    new = _unknown(seen.values(), history, draft)
    attempts = int(draft.fields.get("attempts") or 0)
    for pod in sorted(new, key=lambda pod: pod.started_at or snapshot.now):
        if not _waits_for_nothing(snapshot, pod, history):
            attempts, entry = _opened(pod, history, attempts, snapshot.main)
            if _ATTEMPT in entry and not has_begun(snapshot):
                _take_along(entry, history, {pod.uid for pod in _pods(snapshot) if pod.running and not pod.deleting})
            history.append(entry)
    history.sort(key=lambda entry: (str(entry["startTime"]), int(entry.get(_INDEX) or 0)))
    first = [entry for entry in history if not entry.get(_INDEX)] or history
    _name_pod(draft, first[-1] if new else None)
    if not history:
        return False
    draft.put(attempts=attempts)
    draft.fields.setdefault("startTime", history[0]["startTime"])
    record_stop(history, _pods(snapshot), snapshot, draft.conditions)
    for entry, ending in _endings(draft, history):
        _close(draft, entry, _or_echo(draft, entry, ending, history), history)
    draft.fields["attemptHistory"] = history[-_kept(history) :]
    return False


def _kept(history: Iterable[Entry]) -> int:
    """Return how many pods a history has room for: more of many nodes, so that all that may run are in it."""
    return max(ATTEMPTS_KEPT, GENERATIONS_KEPT * (1 + max(int(entry.get(_INDEX) or 0) for entry in history)))


def _waits_for_nothing(snapshot: Snapshot, pod: PodView | LostPod, history: Sequence[Entry]) -> bool:
    """Tell whether a pod was made anew beside the first, which publishes: it is of the next attempt, if one follows."""
    newest = max((int(item[_ATTEMPT]) for item in history if _ATTEMPT in item), default=0)
    had = any(item.get(_ATTEMPT) == newest and item.get(_INDEX) == pod.index for item in history)
    return bool(pod.index) and had and publishes_alone(snapshot, snapshot.main)


def _opened(pod: PodView | LostPod, history: Sequence[Entry], attempts: int, main: Attempt | None) -> tuple[int, Entry]:
    """Return how many attempts there are with this pod, and its entry.

    A pod with a number belongs to the newest attempt, unless that has had one of this number, or all of its pods have
    ended: it is the next one's. No other follows where the first one has published, nor where another one has ended so
    that its Job does: this one had been made before; nor did one begin while the first published, and needed it not.
    """
    entry = _entry(pod)
    if pod.index is None:
        return attempts + 1, entry
    newest = max((int(item[_ATTEMPT]) for item in history if _ATTEMPT in item), default=0)
    others = [item for item in history if item.get(_ATTEMPT) == newest]
    goes_on = any(_ENDED not in item for item in others)
    joins = all(item.get(_INDEX) != pod.index for item in others) and (goes_on or _is_ending(main))
    joins = joins or first_has_ended_well(main) or _came_beside(entry["startTime"], pod.index, others)
    number = newest if newest and joins else max(newest, attempts) + 1
    return max(attempts, number), {**entry, _INDEX: pod.index, _ATTEMPT: number}


def _came_beside(started: str, index: int, attempt: Sequence[Entry]) -> bool:
    """Tell whether a pod began in place of one that nobody needed, while the first one of the attempt published."""
    before = {item["reason"] for item in attempt if item.get(_INDEX) == index and _ENDED in item}
    first = next((item for item in attempt if not item.get(_INDEX)), None)
    runs = first is not None and first.get(_ENDED, started) >= started
    return runs and before == {NOT_NEEDED}


def _take_along(opened: Entry, history: Iterable[Entry], running: set[str]) -> None:
    """Let those belong to the attempt that a pod opens that waited for it, when the one before it had ended."""
    for entry in history:
        if entry.get(_ATTEMPT) == opened[_ATTEMPT] - 1 and entry["uid"] in running:
            entry[_ATTEMPT] = opened[_ATTEMPT]


def _is_ending(main: Attempt | None) -> bool:
    """Tell whether a Job of several pods ends for one that has: the Job controller tells the others to, and then it."""
    if main is None:
        return False
    ends = main.job.failed_reason is not None or main.failed_too_often
    return ends or any(pod.exit_code == ExitCode.USER_ERROR for pod in main.pods)


def _name_pod(draft: StatusBuilder, opened: Entry | None) -> None:
    """Tell which pod is the newest, also while it waits; of one that is gone already what the ledger has opened."""
    main = draft.snapshot.main
    if main is not None and main.last is not None:
        draft.put(podName=main.last.name)
    elif opened is not None:
        draft.put(podName=opened["pod"])


def close_ledger(draft: StatusBuilder, reason: str) -> None:
    """Close what is open as the object ends: its pods have been told to end, and nobody looks at them again."""
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
    truncated = int(status.get("attempts") or 0) > len(history) if alone else len(history) >= _kept(history)
    return parse_time(history[0]["startTime"]) if history and truncated else None


def _entry(pod: PodView | LostPod) -> Entry:
    entry: Entry = {"uid": pod.uid, "pod": pod.name}
    if pod.node is not None:
        entry["node"] = pod.node
    started = pod.started_at
    return entry if started is None else {**entry, "startTime": format_time(started)}


def _ending(draft: StatusBuilder, entry: Entry, following: datetime | None) -> Termination | None:
    """Return how an attempt ended, or None while its pod runs."""
    snapshot = draft.snapshot
    pod = next((pod for pod in _pods(snapshot) if pod.uid == entry["uid"]), None)
    if pod is not None:
        return ending_of(pod, snapshot, draft.conditions)
    lost = next((lost for lost in snapshot.lost_pods if lost.uid == entry["uid"]), None)
    return ending_of_lost(entry, lost, following, snapshot, draft.conditions)


def _endings(draft: StatusBuilder, history: Sequence[Entry]) -> list[tuple[Entry, Termination]]:
    """Return the entries to be closed with how their pods ended, in the order in which they did.

    The API server's times are whole seconds: within one the order counts in which the pods were seen to go.
    """
    found, gone = [], {lost.uid: place for place, lost in enumerate(draft.snapshot.lost_pods)}
    for place, entry in enumerate(history):
        if _ENDED not in entry:
            after = (item for item in history[place + 1 :] if item.get(_INDEX) == entry.get(_INDEX))
            following = next((parse_time(item["startTime"]) for item in after), None)
            ending = _ending(draft, entry, following)
            found += [(entry, ending)] if ending is not None else []
    return sorted(found, key=lambda each: (each[1].time, gone.get(each[0]["uid"], len(gone))))


def _or_echo(draft: StatusBuilder, entry: Entry, ending: Termination, history: Iterable[Entry]) -> Termination:
    """Return the end of a pod; of one that was told to end once another of its attempt had failed, that it is its echo.

    And of one that ends while the first one publishes, that nobody needed it.

    The Job controller deletes the others once it has given up, as nobody else who shows here does; it does not for one
    that is an echo itself, such as of this very pod, which may end last as it stores its checkpoint. Where the Job is
    gone or held, all of its pods were told to end.
    """
    main = draft.snapshot.main
    if _ATTEMPT not in entry or main is None or entry["startTime"] < main.job.created:
        return ending
    if ending.reason != SUCCEEDED and main.is_not_needed(entry["uid"], entry.get(_INDEX), ending.time):
        return Termination(ending.time, NOT_NEEDED)
    if ending.reason != POD_DELETED:
        return ending
    others = [item for item in history if item.get(_ATTEMPT) == entry[_ATTEMPT] and _ENDED in item]
    failed = [item for item in others if item["reason"] not in (SUCCEEDED, NOT_NEEDED)]
    before = [item for item in failed if item[_ENDED] <= format_time(ending.time)]
    return (
        ending if all(_only_echoes(draft.snapshot, item) for item in before) else Termination(ending.time, PEER_ABORTED)
    )


def _only_echoes(snapshot: Snapshot, entry: Entry) -> bool:
    """Tell whether a pod's end was no more than the echo of another's: one that said so with another exit code counts.

    That is one that has not met the others, which the Job controller counts.
    """
    code = next((pod.exit_code for pod in _pods(snapshot) if pod.uid == entry["uid"]), None)
    return entry["reason"] == PEER_ABORTED and code in (None, ExitCode.PEER_LOST)


def _close(draft: StatusBuilder, entry: Entry, ending: Termination, history: Iterable[Entry]) -> None:
    """Write down the end of a pod; what ran at a time, as pods that work together do, counts once as seconds."""
    others = list(spans(history)) if _INDEX in entry else []
    started = parse_time(entry["startTime"]) or ending.time
    seconds = max(0, int((ending.time - started).total_seconds()))
    gpu_seconds = seconds * draft.snapshot.gpus
    entry |= {_ENDED: format_time(max(started, ending.time)), "reason": ending.reason, "seconds": seconds}
    draft.add("runSeconds", int(alone(started, started + timedelta(seconds=seconds), others)))
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
        running += alone(started, until, ran if pod.index is not None else ())
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


def last_end(status: Mapping[str, Any]) -> str | None:
    """Return how the newest attempt ended; None while it has not, or where there was none."""
    newest = newest_attempt(status)
    return cause_of(newest) if all(_ENDED in entry for entry in newest) else None


def gone_cause(status: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any] | None:
    """Return the entry of the pod for which the last attempt of a Job ended, where that pod is gone.

    None: it has not ended, or a pod that is still there says more of it than that another one is gone.
    """
    entries = newest_attempt(status)
    cause = first_ended(entries) if all(_ENDED in entry for entry in entries) else None
    if cause is None or cause["startTime"] < attempt.job.created or cause["uid"] in {pod.uid for pod in attempt.pods}:
        return None
    begun = parse_time(cause["startTime"])
    if cause["reason"] != PEER_ABORTED:
        # The Job controller has told those to end of which the ledger says so, whatever they made of it.
        entries = [entry for entry in entries if entry["reason"] != PEER_ABORTED]
    others = {entry["uid"] for entry in status.get("attemptHistory") or ()} - {entry["uid"] for entry in entries}
    its = [pod for pod in attempt.pods if pod.uid not in others]
    there = [pod for pod in its if begun is None or _last_known(pod, begun) > begun]
    return (
        None if any(cause["reason"] == PEER_ABORTED or (pod.finished and not is_echo(pod)) for pod in there) else cause
    )


def _last_known(pod: PodView, default: datetime) -> datetime:
    return pod.finished_at or parse_time(pod.created) or default


def same_end_twice(status: Mapping[str, Any], pods: Iterable[PodView], reason: str) -> bool:
    """Tell whether the two newest attempts of a Job ended for `reason`; suspensions and the like are passed over."""
    uids = {pod.uid for pod in pods}
    own = ([entry for entry in entries if entry["uid"] in uids] for entries in _attempts(status))
    ends = [end for entries in own if (end := cause_of(entries)) is not None]
    return [end for end in ends if end not in PASSED_OVER and end != PEER_ABORTED][-2:] == [reason, reason]


def newest_attempt(status: Mapping[str, Any]) -> Sequence[Entry]:
    """Return the entries of the newest attempt: of pods that work together one each; none where there was none."""
    attempts = list(_attempts(status))
    return attempts[-1] if attempts else []


def _attempts(status: Mapping[str, Any]) -> Iterable[Sequence[Entry]]:
    """Return the entries of each attempt, the oldest first: of pods that work together several."""
    found: dict[Any, list[Entry]] = {}
    for entry in status.get("attemptHistory") or ():
        name = entry.get(_ATTEMPT, entry["uid"])
        found[name] = [*found.pop(name, ()), entry]  # in the order of the last that began: one may have waited for it
    return found.values()


def of_one_attempt(status: Mapping[str, Any], attempt: Attempt) -> bool:
    """Tell whether the pods of a Job that run are of one attempt: an older one may still store what it has, and end."""
    numbers = attempt_numbers(status)
    return len({numbers[pod.uid] for pod in attempt.newest if pod.running and pod.uid in numbers}) < 2


def ends_its_job(draft: StatusBuilder, attempt: Attempt, pod: PodView) -> bool:
    """Tell whether no attempt follows one whose container has failed, though its Job ends some seconds later only."""
    if pod.exit_code == ExitCode.USER_ERROR:
        return True
    retries = attempt.job.retries
    if attempt.job.nodes > 1:
        return attempt.failed_too_often
    failed = [each for each in attempt.pods if each.phase == "Failed" or each.exit_code not in (None, 0)]
    counted = [each for each in failed if how_it_ended(each, draft.snapshot, draft.conditions) not in PASSED_OVER]
    return pod in counted and retries is not None and len(counted) > retries


def retries_used(status: Mapping[str, Any], attempt: Attempt) -> int | None:
    """Return how many of its Job's retries the attempts that have failed use up; None: that is not known for sure.

    The Job controller counts, too, who was deleted or suspended, in ways of its own; nobody else knows how often.
    """
    job, history = attempt.job, status.get("attemptHistory") or ()
    before, there = _listed_since(status, history), {pod.uid for pod in attempt.pods}
    created, charged = parse_time(job.created), [pod for pod in attempt.pods if pod.disruption is None]
    if job.retries is None or (before is not None and created is not None and before > created):
        return None
    for entry in history:
        end = entry.get("reason", SUCCEEDED) if entry["startTime"] >= job.created else SUCCEEDED
        told = end in PASSED_OVER | {SUCCEEDED, NOT_NEEDED, PEER_ABORTED}
        if end in _NOT_FOR_SURE or not (told or entry["uid"] in there):
            return None
    if any(pod.finished and pod.deleting and pod.exit_code != ExitCode.PEER_LOST for pod in charged):
        return None
    if job.nodes > 1:
        return attempt.failures
    failed = sum(bool(pod.exit_code) or pod.phase == "Failed" for pod in charged)
    return failed if failed >= job.failed else None
