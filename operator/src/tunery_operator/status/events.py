"""The events that a change of status deserves: one for each transition of a condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from tunery_api.names import RETRY_ANNOTATION
from tunery_api.reasons import FailureReason
from tunery_api.status import ConditionType, Phase
from tunery_operator.views.event import RETRIED, Event

DATASET_WARNING: Final = "DatasetWarning"
RANK_TOO_LOW: Final = "RankTooLow"
HEALTHY: Final = "Healthy"
_WARNINGS: Final = frozenset({"AttemptFailed", RANK_TOO_LOW})
"""What a reader should see, though nothing has failed for good."""
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
    }
)
"""Reasons that tell a reader nothing that another event does not."""


def transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    """Return an event for each condition whose status or reason changed from `old` to `new`, each reason once.

    And one for a failed object that was reopened, and one for what preflight or training warns of in the data set.
    """
    events: dict[str, Event] = {}
    warnings = _dataset_warnings(new)
    if warnings and warnings != _dataset_warnings(old):
        events[DATASET_WARNING] = Event(DATASET_WARNING, "; ".join(warnings), True, _judged(new))
    if _is_retried(old, new):
        text = f"it is tried again, as the annotation {RETRY_ANNOTATION} asks for"
        events[RETRIED] = Event(RETRIED, text, False, str(new["observedRetry"]))
    for condition in _changed(old, new):
        reason = condition["reason"]
        if reason not in _QUIET:
            # What a later version of the trainer finds has a word that is not known here.
            warning = reason in _FAILURES or reason in _WARNINGS or condition["type"] == ConditionType.HEALTHY
            note = condition.get("message") or reason
            first = events.setdefault(reason, Event(reason, note, warning, condition["lastTransitionTime"]))
            # Of several conditions one tells it whole.
            events[reason] = replace(first, note=max(first.note, note, key=len))
    return tuple(events.values())


def _dataset_warnings(status: Mapping[str, Any]) -> list[str]:
    return (status.get("dataset") or {}).get("warnings") or []


def _judged(status: Mapping[str, Any]) -> str:
    """Return when preflight last spoke, or was left out."""
    times = [c["lastTransitionTime"] for c in status.get("conditions") or () if c["type"] == ConditionType.PREFLIGHT]
    return times[0] if times else str(status.get("startTime") or "")


def _is_retried(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return old.get("phase") == Phase.FAILED.value and new.get("phase") not in (None, Phase.FAILED.value)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    before = {c["type"]: (c["status"], c["reason"]) for c in old.get("conditions") or ()}
    for condition in new.get("conditions") or ():
        if before.get(condition["type"]) != (condition["status"], condition["reason"]):
            yield condition
