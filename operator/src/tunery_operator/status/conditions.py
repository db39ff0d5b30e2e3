"""Provide the conditions of an object, and compute its phase and the conditions of kstatus from them.

kstatus, which Flux and other tools use for kinds that they do not know, reads Reconciling and Stalled. Each is set only
while it is True; without both, the object is ready.

To add a condition, add its type to `tunery_api.status.ConditionType`, and set it in one of the checks of compute.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from tunery_api.redact import CUT, redact, shorten
from tunery_api.status import FINAL_PHASES, ConditionStatus, ConditionType, Phase
from tunery_operator.observed.metadata import format_time, parse_time

_SHORT: Final = 160
"""Bytes of a message that several conditions may repeat."""
_STATUS = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}
FINISHING: Final = "Finishing"
"""Reason of Running=False between the end of a pod that ended well and that of its Job."""
RESULT_LOOKUP: Final = "ResultLookup"
"""Reason of Running=False while a Job reads the published files, as the pod that published is gone."""
STOPPING: Final = "Stopping"
"""Reason of Running=True while a deleted pod ends, and of Suspended=False and Stopped=False until all have ended."""
OUT_OF_TIME: Final = "OutOfTime"
"""Reason of Running=True while a pod stores its checkpoint after spec.activeDeadlineSeconds."""
PUBLISHING: Final = "Publishing"
"""Reason of Stopped=False while a small Job publishes what was trained."""
JOB_SUSPENDED: Final = "JobSuspended"
"""Reason of Running=False while another client, which is not its queue, suspends the Job."""
POD_STARTED: Final = "PodStarted"
"""Reason of Running=True while the pod imports its libraries."""
WAITING_FOR_PREDECESSOR: Final = "WaitingForPredecessor"
WAITING_FOR_SLOT: Final = "WaitingForPreflightSlot"
"""Reasons of the next stage: what must end before its Job is created."""
_WAITING: Final = frozenset({WAITING_FOR_PREDECESSOR, WAITING_FOR_SLOT, JOB_SUSPENDED})
NOT_REPORTING: Final = "NotReporting"
"""Reason of ProgressReported=False if a pod has sent no report for two minutes, and of Running=True if it has never
sent one."""
WORKING_PHASES: Final = frozenset(
    {Phase.DOWNLOADING, Phase.TRAINING, Phase.EVALUATING, Phase.MERGING, Phase.ANSWERING, Phase.UPLOADING}
)
"""The phases that a running pod reports, which are the reasons of Running=True."""
_TRAINER_PHASES: Final = {
    POD_STARTED: Phase.STARTING,
    NOT_REPORTING: Phase.STARTING,
    # The terminating pod no longer trains, and its successor has not started.
    STOPPING: Phase.STARTING,
    OUT_OF_TIME: Phase.STOPPING,
    **{phase.value: phase for phase in WORKING_PHASES},
}
_STALLED_BYTES: Final = 160
"""Bytes of the message of Stalled; condition Failed has all of it."""
_ENDED_BY: Final = {
    Phase.SUCCEEDED: ConditionType.SUCCEEDED,
    Phase.FAILED: ConditionType.FAILED,
    Phase.STOPPED: ConditionType.STOPPED,
}
_SHOWN_BY: Final = {
    Phase.WAITING: (ConditionType.INPUTS_READY, ConditionType.RUNNING, ConditionType.PREFLIGHT),
    Phase.QUEUED: (ConditionType.QUOTA_RESERVED,),
    Phase.SEARCHING: (ConditionType.SEARCHING,),
    Phase.PREFLIGHT: (ConditionType.PREFLIGHT,),
    Phase.STARTING: (ConditionType.RUNNING,),
    Phase.STOPPING: (ConditionType.STOPPED,),
    Phase.UPLOADING: (ConditionType.STOPPED, ConditionType.RUNNING),
}
"""The conditions that have the reason of a phase: the first that is not True."""
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
"""Reasons that add nothing to the phase."""


class Conditions:
    """The conditions of a status while it is being computed."""

    def __init__(
        self, old: Iterable[Mapping[str, Any]], generation: int, now: datetime, types: type[StrEnum] = ConditionType
    ) -> None:
        self._order = {type_.value: index for index, type_ in enumerate(types)}
        self._by_type: dict[str, dict[str, Any]] = {c["type"]: dict(c) for c in old}
        self._generation = generation
        self._now = format_time(now)

    def set(self, type_: StrEnum, status: bool | None, reason: str, message: str = "") -> None:
        """Set a condition to True, False or (None) Unknown."""
        value = _STATUS[status].value
        old = self._by_type.get(type_.value)
        flipped = old is None or old["status"] != value
        condition = {
            "type": type_.value,
            "status": value,
            "reason": reason,
            "lastTransitionTime": self._now if flipped or old is None else old["lastTransitionTime"],
            "observedGeneration": self._generation,
        }
        if message:
            condition["message"] = redact(message)
        self._by_type[type_.value] = condition

    def abridge(self, message: str, complete_in: StrEnum) -> None:
        """Shorten a long message in all conditions except `complete_in`."""
        text = redact(message)
        if len(text.encode()) <= _SHORT:
            return
        much = "more" if text.endswith(CUT) else "all"
        short = f"{shorten(text, _SHORT)} (condition {complete_in} has {much} of it)"
        for type_, condition in self._by_type.items():
            if type_ != complete_in.value and condition.get("message") == text:
                condition["message"] = short

    def status(self, type_: StrEnum) -> str | None:
        """Return True, False or Unknown as a string, or None where the condition is not set."""
        condition = self._by_type.get(type_.value)
        return condition["status"] if condition else None

    def is_true(self, type_: StrEnum) -> bool:
        """Return whether the condition is True."""
        return self.status(type_) == ConditionStatus.TRUE.value

    def is_false(self, type_: StrEnum) -> bool:
        """Return whether the condition is False."""
        return self.status(type_) == ConditionStatus.FALSE.value

    def reason(self, type_: StrEnum) -> str | None:
        """Return the reason of a condition, or None where it is not set."""
        condition = self._by_type.get(type_.value)
        return condition["reason"] if condition else None

    def message(self, type_: StrEnum) -> str:
        """Return the message of a condition; empty where it has none, or is not set."""
        message: str = self._by_type.get(type_.value, {}).get("message", "")
        return message

    def drop(self, type_: StrEnum) -> None:
        """Remove a condition."""
        self._by_type.pop(type_.value, None)

    def confirm(self) -> None:
        """Set observedGeneration of every condition, also of those that were not set now.

        kubectl wait compares it with the newest generation. Conditions of a later version stay unchanged.
        """
        for type_, condition in self._by_type.items():
            if type_ in self._order:
                self._by_type[type_] = {**condition, "observedGeneration": self._generation}

    def to_list(self) -> list[dict[str, Any]]:
        """Return the conditions in the order of their types; those of a later version come last."""
        return sorted(self._by_type.values(), key=lambda c: (self._order.get(c["type"], len(self._order)), c["type"]))


def phase_of(conditions: Conditions, working: Phase) -> Phase:
    """Return the phase; the first line that holds wins. `working` is the phase of a pod that reports no other."""
    checks = (
        (conditions.is_true(ConditionType.FAILED), Phase.FAILED),
        (conditions.is_true(ConditionType.SUCCEEDED), Phase.SUCCEEDED),
        (conditions.is_true(ConditionType.STOPPED), Phase.STOPPED),
        (conditions.reason(ConditionType.STOPPED) == PUBLISHING, Phase.UPLOADING),
        (conditions.is_false(ConditionType.STOPPED), Phase.STOPPING),
        (conditions.is_true(ConditionType.SUSPENDED), Phase.SUSPENDED),
        (conditions.reason(ConditionType.SUSPENDED) == STOPPING, Phase.SUSPENDING),
        (conditions.is_false(ConditionType.INPUTS_READY), Phase.WAITING),
        (conditions.status(ConditionType.SEARCHING) in ("True", "Unknown"), Phase.SEARCHING),
        # The pod has succeeded, but its Job is not complete yet, or its termination message is gone: no pod follows.
        (conditions.reason(ConditionType.RUNNING) in (FINISHING, RESULT_LOOKUP), Phase.UPLOADING),
        (conditions.is_false(ConditionType.QUOTA_RESERVED), Phase.QUEUED),
        (
            conditions.is_true(ConditionType.RUNNING),
            _TRAINER_PHASES.get(conditions.reason(ConditionType.RUNNING) or "", working),
        ),
        (conditions.reason(ConditionType.RUNNING) in _WAITING, Phase.WAITING),
        (conditions.reason(ConditionType.PREFLIGHT) in _WAITING, Phase.WAITING),
        (conditions.status(ConditionType.RUNNING) is not None, Phase.STARTING),
        (conditions.status(ConditionType.PREFLIGHT) == "Unknown", Phase.PREFLIGHT),
        # No more trials are created; some still run, or the Job that publishes the best one does not exist yet.
        (conditions.is_false(ConditionType.SEARCHING), Phase.SEARCHING),
    )
    return next((phase for holds, phase in checks if holds), Phase.PENDING)


def set_summary(conditions: Conditions, phase: Phase) -> None:
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
        message = shorten(conditions.message(ConditionType.FAILED), _STALLED_BYTES)
        conditions.set(stalled, True, conditions.reason(ConditionType.FAILED) or phase.value, message)
    else:
        conditions.drop(stalled)


def summary_reason(conditions: Conditions, phase: Phase, failure: Mapping[str, Any] | None) -> str | None:
    """Return status.reason: why an object failed, was stopped or waits; None if its phase is enough."""
    if phase in _ENDED_BY:
        reason = conditions.reason(_ENDED_BY[phase])
        return None if reason == phase.value else reason
    if failure is not None:
        return str(failure["reason"])
    if conditions.is_false(ConditionType.PROGRESS_REPORTED):
        return NOT_REPORTING
    types = (type_ for type_ in _SHOWN_BY.get(phase, ()) if conditions.status(type_) not in (None, "True"))
    reason = next((conditions.reason(type_) for type_ in types), None)
    return None if reason in _PLAIN else reason


def retried_status(status: Mapping[str, Any], generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of an object that is retried, with the conditions that tools read."""
    conditions = Conditions(status.get("conditions") or (), generation, now)
    set_summary(conditions, Phase(status["phase"]))
    conditions.confirm()
    return {**status, "conditions": conditions.to_list()}


def final_status(status: Mapping[str, Any], generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of an object that has ended, for that generation of its spec; pure, idempotent.

    After the end, a change of the spec has no effect; the generation shows tools that it was observed.
    """
    phase = Phase(status["phase"])
    conditions = Conditions(status.get("conditions") or (), generation, parse_time(status.get("completionTime")) or now)
    set_summary(conditions, phase)
    conditions.confirm()
    others = {name: value for name, value in status.items() if name != "reason"}
    reason = summary_reason(conditions, phase, status.get("failure"))
    shown = {"reason": reason} if reason is not None else {}
    return {**others, **shown, "observedGeneration": generation, "conditions": conditions.to_list()}
