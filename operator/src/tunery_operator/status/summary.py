"""What tools and people read first: whether an object has ended, how GitOps tools take it, and one word why.

Derived from the phase and the other conditions, and from nothing else. kstatus, by which Flux and others judge an
object that they do not know, reads Reconciling and Stalled: neither means that all is as it should be. Each is there
only while it is True.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from tunery_api.scrub import shorten
from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_operator.observed.metadata import parse_time
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.phase import NOT_REPORTING

_SHORT: Final = 160
"""Bytes of the message of Stalled; condition Failed has all of it."""

_ENDED_BY: Final = {
    Phase.SUCCEEDED: ConditionType.SUCCEEDED,
    Phase.FAILED: ConditionType.FAILED,
    Phase.STOPPED: ConditionType.STOPPED,
}
_TOLD_BY: Final = {
    Phase.WAITING: (ConditionType.INPUTS_READY, ConditionType.RUNNING, ConditionType.PREFLIGHT),
    Phase.QUEUED: (ConditionType.QUOTA_RESERVED,),
    Phase.SEARCHING: (ConditionType.SEARCHING,),
    Phase.PREFLIGHT: (ConditionType.PREFLIGHT,),
    Phase.STARTING: (ConditionType.RUNNING,),
    Phase.STOPPING: (ConditionType.STOPPED,),
    Phase.UPLOADING: (ConditionType.STOPPED, ConditionType.RUNNING),
}
"""The conditions that say why an object is at a phase, the first that is not True."""
_PLAIN: Final = frozenset(
    {
        "PreflightPending",
        "PreflightStarting",
        "PreflightRunning",
        "Starting",
        "Stopped",
        "Stopping",
        "Finishing",
        "Publishing",
    }
)
"""Reasons that say no more than the phase does."""


def sum_up(conditions: Conditions, phase: Phase) -> None:
    """Set what follows from the phase: Finished, Reconciling and Stalled."""
    finished, reconciling, stalled = ConditionType.FINISHED, ConditionType.RECONCILING, ConditionType.STALLED
    if phase.value in FINAL_PHASES:
        conditions.set(finished, True, phase.value)
    else:
        conditions.set(finished, False, "InProgress")
    if phase.value in FINAL_PHASES or phase is Phase.SUSPENDED:
        conditions.drop(reconciling)
    else:
        conditions.set(reconciling, True, phase.value)
    if phase is Phase.FAILED:
        told = shorten(conditions.message(ConditionType.FAILED), _SHORT)
        conditions.set(stalled, True, conditions.reason(ConditionType.FAILED) or phase.value, told)
    else:
        conditions.drop(stalled)


def word_why(conditions: Conditions, phase: Phase, failure: Mapping[str, Any] | None) -> str | None:
    """Return status.reason: why an object failed, was stopped or waits; None where its phase says all."""
    if phase in _ENDED_BY:
        reason = conditions.reason(_ENDED_BY[phase])
        return None if reason == phase.value else reason
    if failure is not None:
        return str(failure["reason"])
    if conditions.is_false(ConditionType.PROGRESS_REPORTED):
        return NOT_REPORTING
    told = (type_ for type_ in _TOLD_BY.get(phase, ()) if conditions.status(type_) not in (None, "True"))
    reason = next((conditions.reason(type_) for type_ in told), None)
    return None if reason in _PLAIN else reason


def under_way_again(status: Mapping[str, Any], generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of an object that is tried again, with what tools read of it: in the same write."""
    conditions = Conditions(status.get("conditions") or (), generation, now)
    sum_up(conditions, Phase(status["phase"]))
    conditions.confirm()
    return {**status, "conditions": conditions.to_list()}


def settled(status: Mapping[str, Any], generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of an object that has ended, for that generation of its spec; pure, idempotent.

    After the end nothing follows from a change of the spec, and tools see that it was observed.
    """
    phase = Phase(status["phase"])
    conditions = Conditions(status.get("conditions") or (), generation, parse_time(status.get("completionTime")) or now)
    sum_up(conditions, phase)
    conditions.confirm()
    kept = {name: value for name, value in status.items() if name != "reason"}
    reason = word_why(conditions, phase, status.get("failure"))
    told = {"reason": reason} if reason is not None else {}
    return {**kept, **told, "observedGeneration": generation, "conditions": conditions.to_list()}
