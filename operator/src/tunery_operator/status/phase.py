"""The phase: one word, derived from the conditions and from nothing else."""

from __future__ import annotations

from typing import Final

from tunery_api.status import ConditionType, Phase
from tunery_operator.status.conditions import Conditions

FINISHING: Final = "Finishing"
"""Reason of Running=False between the end of a pod that ended well and that of its Job."""

RESULT_LOOKUP: Final = "ResultLookup"
"""Reason of Running=False while the bucket is asked what a pod that is gone has published."""

STOPPING: Final = "Stopping"
"""Reason of Running=True while a pod was told to end, and of Suspended=False and Stopped=False until all have."""

OUT_OF_TIME: Final = "OutOfTime"
"""Reason of Running=True while the pod that spec.activeDeadlineSeconds has told to end stores its checkpoint."""

PUBLISHING: Final = "Publishing"
"""Reason of Stopped=False while a small Job publishes what was trained; another where its pod cannot run yet."""

HELD: Final = "JobSuspended"
"""Reason of Running=False while somebody else holds the Job, who is not a queue that it names."""

POD_STARTED: Final = "PodStarted"
"""Reason of Running=True until the pod downloads, trains, merges or asks: it imports its libraries."""

WAITING_FOR_PREDECESSOR: Final = "WaitingForPredecessor"
WAITING_FOR_SLOT: Final = "WaitingForPreflightSlot"
"""Reasons of the stage that comes next: what must go before its Job may be made."""
_WAITING: Final = frozenset({WAITING_FOR_PREDECESSOR, WAITING_FOR_SLOT, HELD})

NOT_REPORTING: Final = "NotReporting"
"""Reason of ProgressReported=False where a pod has run for two minutes and nothing was heard of it, and of Running=True
where nothing ever was: whether it still starts, nobody knows."""

AT_WORK: Final = frozenset(
    {Phase.DOWNLOADING, Phase.TRAINING, Phase.EVALUATING, Phase.MERGING, Phase.ANSWERING, Phase.UPLOADING}
)
"""The phases of a pod at work: what it says of itself, and the reasons of Running=True."""
_TRAINER_PHASES: Final = {
    POD_STARTED: Phase.STARTING,
    NOT_REPORTING: Phase.STARTING,
    # The pod that was told to end does not train any more, and the next one is to come.
    STOPPING: Phase.STARTING,
    OUT_OF_TIME: Phase.STOPPING,
    **{phase.value: phase for phase in AT_WORK},
}


def phase_of(conditions: Conditions, working: Phase) -> Phase:
    """Return the phase; the first line that holds wins. `working` is that of a pod of this kind that says no other."""
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
        # The pod has ended well, and its Job does not say so yet, or its words are gone: nothing starts again.
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
        # No more trials are made; those that run still end, or the Job that publishes the best is not there yet.
        (conditions.is_false(ConditionType.SEARCHING), Phase.SEARCHING),
    )
    return next((phase for holds, phase in checks if holds), Phase.PENDING)
