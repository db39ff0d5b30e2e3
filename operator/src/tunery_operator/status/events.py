"""Compute the events of a change of status: one for each transition of a condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from tunery_api.names import RETRY_ANNOTATION
from tunery_api.reasons import FailureReason
from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_api.sweepstatus import TrialState
from tunery_operator.observed.attempt import (
    EVICTED,
    NOT_NEEDED,
    PREEMPTED,
    VANISHED,
    first_ended,
    newest_attempt,
)
from tunery_operator.observed.event import RETRIED, Event
from tunery_operator.status.conditions import NOT_REPORTING, STOPPING
from tunery_operator.status.retries import PREVIOUS_ATTEMPT, attempt_name, interruption_text

DATASET_WARNING: Final = "DatasetWarning"
RANK_TOO_LOW: Final = "RankTooLow"
TRIALS_LEFT: Final = "TrialsLeft"
REMOVAL_UNKNOWN: Final = "RemovalUnknown"
CHECKPOINT_NOT_STORED: Final = "CheckpointNotStored"
NEW_BEST: Final = "NewBest"
TRIAL_FAILED: Final = "TrialFailed"
HEALTHY: Final = "Healthy"
RETRY_REFUSED: Final = "RetryRefused"
_ATTEMPT_FAILED: Final = "AttemptFailed"
_NEW_OBJECT: Final = ". To run it again, create an object with another name"
_WARNINGS: Final = frozenset(
    {_ATTEMPT_FAILED, CHECKPOINT_NOT_STORED, NOT_REPORTING, RANK_TOO_LOW, TRIALS_LEFT, REMOVAL_UNKNOWN}
)
"""Reasons of warnings although the object has not failed."""
_DERIVED: Final = frozenset({ConditionType.FINISHED, ConditionType.RECONCILING, ConditionType.STALLED})
"""Conditions that repeat others."""
_ENDS: Final = frozenset({ConditionType.SUCCEEDED, ConditionType.FAILED, ConditionType.STOPPED})
_OUTCOMES: Final = frozenset({ConditionType.ADAPTER_UPLOADED, ConditionType.OUTPUT_UPLOADED, ConditionType.EVALUATED})
"""Conditions that, once True, are a result of the object."""
_DISRUPTIONS: Final = frozenset(
    {EVICTED, PREEMPTED, VANISHED, FailureReason.NODE_LOST.value, FailureReason.NODE_PRESSURE.value}
)
"""Ends of an attempt that are reported although the attempt is not at fault."""
_FAILURES: Final = frozenset(reason.value for reason in FailureReason)
_QUIET: Final = frozenset(
    {
        HEALTHY,
        "SpecValid",
        "InProgress",
        "PreflightSkipped",
        "PreflightPending",
        "PreflightQueued",
        "Queued",
        "Ended",
        "Stopped",
        "Finishing",
        "InputsReady",
        "SearchSuspended",
        ConditionType.PROGRESS_REPORTED.value,
    }
)
"""Reasons without an event, as another event has the same information."""


def transitions(old: Mapping[str, Any], new: Mapping[str, Any], *, of_trial: bool = False) -> tuple[Event, ...]:
    """Return an event for each condition whose status or reason changed from `old` to `new`, each reason once.

    Also return an event for a retry, or why it is rejected (`of_trial`: the object is a trial), and one for new
    warnings about the dataset.
    """
    events: dict[str, Event] = {}
    warnings = _dataset_warnings(new)
    if warnings and warnings != _dataset_warnings(old):
        events[DATASET_WARNING] = Event(DATASET_WARNING, "; ".join(warnings), True, _preflight_time(new))
    if _is_retried(old, new):
        text = f"it is retried, as the annotation {RETRY_ANNOTATION} requests"
        events[RETRIED] = Event(RETRIED, text, False, str(new["observedRetry"]))
    if _is_rejected(old, new):
        events[RETRY_REFUSED] = Event(RETRY_REFUSED, _rejection_note(new, of_trial), True, str(new["observedRetry"]))
    events.update({event.reason: event for event in (*_of_trials(old, new), *_of_attempt(old, new))})
    for condition in _changed(old, new):
        reason = condition["reason"]
        if reason not in _QUIET:
            # A finding of a later version of the trainer may be unknown here.
            warning = reason in _FAILURES or reason in _WARNINGS or condition["type"] == ConditionType.HEALTHY
            note = condition.get("message") or reason
            first = events.setdefault(reason, Event(reason, note, warning, condition["lastTransitionTime"]))
            # The longest message of several conditions is complete.
            note, ends = max(first.note, note, key=len), first.ends or _reports_end(condition, new)
            events[reason] = replace(first, note=note, ends=ends)
    return tuple(events.values())


def _of_attempt(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Event]:
    """Yield how the newest attempt ended if Running has another reason: what blocks the next attempt."""
    entries, failure = newest_attempt(new), new.get("failure") or {}
    ended = first_ended(entries)
    is_news = ended is not None and all(entry.get("endTime") for entry in entries) and entries != newest_attempt(old)
    if ended is None or not is_news or not failure or new.get("phase") in FINAL_PHASES:
        return
    pod = ended["pod"] if "index" in ended else None
    name, time = attempt_name(ended.get("attempt") or new["attempts"], pod), str(ended["endTime"])
    before = (failure.get("facts") or {}).get(PREVIOUS_ATTEMPT)
    reason = str(ended["reason"])
    if reason in _DISRUPTIONS:
        yield Event(reason, interruption_text(name, reason), reason in _FAILURES, time)
    elif before:
        yield Event(_ATTEMPT_FAILED, f"{name} {before}", True, time)


def _reports_end(condition: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Return whether a condition shows how its object ended: also Healthy, in the write that ends it."""
    if condition["type"] == ConditionType.HEALTHY:
        return status.get("phase") in FINAL_PHASES
    return condition["status"] == "True" and condition["type"] in _ENDS | _OUTCOMES


def _of_trials(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Event]:
    """Yield the events of a sweep's trials: a new best one, and those that failed."""
    best, before = new.get("best") or {}, old.get("best") or {}
    if best and best.get("trial") != before.get("trial"):
        previous = f", {before['name']} had {before['value']}" if before else ""
        text = f"{best['name']} has a held-out loss of {best['value']}{previous}"
        yield Event(NEW_BEST, text, False, str(best["trial"]))
    known = {row["number"] for row in old.get("trials") or () if _has_failed(row)}
    failed = [row for row in new.get("trials") or () if _has_failed(row) and row["number"] not in known]
    if failed:
        text = "; ".join(
            f"{row['name']}: {row.get('reason') or row['state']}: {row.get('why') or ''}" for row in failed
        )
        yield Event(TRIAL_FAILED, text, True, str(failed[-1]["number"]))


def _has_failed(row: Mapping[str, Any]) -> bool:
    return row.get("state") in (TrialState.FAILED.value, TrialState.INFEASIBLE.value)


def _dataset_warnings(status: Mapping[str, Any]) -> list[str]:
    return (status.get("dataset") or {}).get("warnings") or []


def _preflight_time(status: Mapping[str, Any]) -> str:
    """Return when the condition Preflight last changed, else when the object started."""
    times = [c["lastTransitionTime"] for c in status.get("conditions") or () if c["type"] == ConditionType.PREFLIGHT]
    return times[0] if times else str(status.get("startTime") or "")


def _is_retried(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return old.get("phase") == Phase.FAILED.value and new.get("phase") not in (None, Phase.FAILED.value)


def _is_rejected(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether an object that has ended rejects a requested retry; a failed one that does is a trial."""
    ended = new.get("phase") in FINAL_PHASES
    requested = new.get("observedRetry") not in (None, old.get("observedRetry"))
    return ended and requested and old.get("phase") == new.get("phase")


def _rejection_note(status: Mapping[str, Any], of_trial: bool) -> str:
    """Return why an object that has ended is not retried, and what to do instead."""
    if status.get("phase") == Phase.SUCCEEDED.value:
        return f"it has succeeded and is not retried{_NEW_OBJECT}"
    if status.get("phase") == Phase.FAILED.value:
        return (
            f"a trial is retried only with its sweep: {(status.get('failure') or {}).get('hint') or 'retry its sweep'}"
        )
    if of_trial:
        return "a trial is retried only with its sweep, and this one was stopped for good"
    step = (status.get("checkpoint") or {}).get("step")
    resumes = f"; with this one in resumeFrom.loraJobRef.name it continues after step {step}" if step else ""
    pause = "To pause a job, set spec.suspend instead of spec.stop"
    return f"it was stopped for good and is not retried{_NEW_OBJECT}{resumes}. {pause}"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    before = {c["type"]: (c["status"], c["reason"]) for c in old.get("conditions") or () if c["type"] not in _DERIVED}
    stops = any(reason == STOPPING for _, reason in before.values())
    newest, ended = {entry["uid"] for entry in newest_attempt(new)}, newest_attempt(old)
    # The end of an attempt was reported already; the Job controller then deletes its other pods.
    closed = [entry["uid"] in newest for entry in ended if entry.get("endTime") and entry.get("reason") != NOT_NEEDED]
    already_reported = {STOPPING} if any(closed) else set()
    if old.get("failure") and closed and len(closed) == len(ended) and all(closed):
        already_reported |= {_ATTEMPT_FAILED, *_DISRUPTIONS}
    for condition in new.get("conditions") or ():
        current = condition["status"], condition["reason"]
        if condition["type"] in _DERIVED or before.get(condition["type"]) == current:
            continue
        if condition["type"] == ConditionType.RUNNING and condition["reason"] in already_reported:
            continue
        # The stop and the termination of its pod are one event; the condition has the details.
        if not (stops and condition["reason"] == STOPPING):
            yield condition
