"""Show what blocks the next Job: a rejection by the API server, or a plan that is no longer valid."""

from __future__ import annotations

from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.status import ConditionType
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.diagnosis import failure
from tunery_operator.status.phase import STOPPING
from tunery_operator.status.snapshot import Snapshot


def set_blocked(draft: StatusBuilder) -> None:
    """Show why the next Job cannot be created or changed, where that is so."""
    found = _found(draft.snapshot)
    if found is not None:
        draft.show_blocker(found)
        _set_stage(draft, str(found.reason), found.message)
    elif draft.snapshot.waiting_for is not None:
        _set_stage(draft, draft.snapshot.waiting_reason, f"waits for {draft.snapshot.waiting_for}")


def _found(snapshot: Snapshot) -> Failure | None:
    if snapshot.rejection is not None:
        return snapshot.rejection
    if snapshot.unplannable and _waits_for_a_plan(snapshot):
        text = "; ".join(str(error) for error in snapshot.unplannable)
        return failure(FailureReason.PLATFORM_CHANGED, f"this was accepted, and cannot be planned any more: {text}")
    return None


def _waits_for_a_plan(snapshot: Snapshot) -> bool:
    """Tell whether a Job is to be made: the first, or one that follows what the spec says by now."""
    main = snapshot.main
    return main is None or (not main.job.finished and main.job.settings not in (None, snapshot.owner.settings))


def _is_stopping(snapshot: Snapshot) -> bool:
    """Tell whether all that must go before an object is suspended was told to end."""
    attempts = [attempt for attempt in (snapshot.preflight, snapshot.main) if attempt is not None]
    return all(attempt.job.finished or attempt.job.suspend for attempt in attempts)


def _set_stage(draft: StatusBuilder, reason: str, message: str) -> None:
    """Set the condition of what would come next; a pod that runs is not hindered by it."""
    snapshot, running, preflight = draft.snapshot, ConditionType.RUNNING, ConditionType.PREFLIGHT
    if draft.conditions.reason(ConditionType.SUSPENDED) == STOPPING and not _is_stopping(snapshot):
        # What cannot be stopped is not on its way to be.
        draft.conditions.set(ConditionType.SUSPENDED, False, reason, message)
    if snapshot.kind is Kind.LORASWEEP and snapshot.main is None and snapshot.waiting_for is None:
        _set_searching(draft, reason, message)
        return
    before_work = snapshot.running.has_preflight and not draft.conditions.is_true(preflight)
    if before_work:
        draft.conditions.set(preflight, None, reason, message)
    elif draft.conditions.status(running) != "True":
        draft.conditions.set(running, False, reason, message)


def _set_searching(draft: StatusBuilder, reason: str, message: str) -> None:
    """Say of a sweep without a Job what keeps it from its next step, where the search itself has not told that."""
    if draft.snapshot.search is None:
        over = draft.conditions.is_false(ConditionType.SEARCHING)
        draft.conditions.set(ConditionType.SEARCHING, False if over else None, reason, message)
