"""Report: compute the status, stop what must not go on, and write it if it changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_api.sweepstatus import FINAL_TRIAL_STATES
from tunery_operator.client.status import status_change
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.finished import jobs_of, mark_done, seconds_to_live, stop_jobs
from tunery_operator.controllers.managed_object import ManagedObject
from tunery_operator.controllers.removed_trials import tell_trials
from tunery_operator.controllers.writing import seconds_to_wait, write
from tunery_operator.runtime.workqueue import Requeue, earliest
from tunery_operator.status.compute import compute_status
from tunery_operator.status.requeue_after import requeue_after
from tunery_operator.status.retry_requested import reopened
from tunery_operator.status.snapshot import Snapshot

_ANSWERS: Final = {"lines", "answered", "errors", "promptTokens", "completionTokens", "answeredBy"}
_FREQUENT: Final = frozenset({"progress", "metrics", "evaluations", "findings", "checks", "checkpoint"} | _ANSWERS)
"""Fields that a pod changes every few seconds: written at most once in progress.writeSeconds."""


def report(services: ReconcileContext, obj: ManagedObject, snapshot: Snapshot, retry_in: float | None) -> Requeue:
    """Bring the object's status up to date; look again at once where that opens the next step.

    `retry_in` is when to try again what could not be done; None: everything was done.
    """
    status = compute_status(snapshot)
    if status["phase"] in (Phase.FAILED.value, Phase.STOPPED.value):
        # A kill between the two leads to the same end: the next look finds the object as it was, without its Jobs.
        stop_jobs(services, snapshot)
    tell_trials(services, obj, status)
    change = status_change(obj.body, status)
    later = earliest(retry_in, requeue_after(snapshot, status))
    wait = seconds_to_wait(services, obj, change, _FREQUENT)
    if not change or wait > 0:
        _mark_preflight(services, obj)
        return Requeue(earliest(later, wait if change else None))
    woken = write(services, obj, status, change)
    if status["phase"] in FINAL_PHASES:
        mark_done(services, obj.owner, [attempt.job for attempt in jobs_of(snapshot)])
        if reopened(status, obj.retry) is not None:
            # Asked for while trials of a sweep still ended; no watch tells of it any more.
            return Requeue(0.0, woken)
        return Requeue(seconds_to_live(services, obj, status), woken)
    return Requeue(0.0 if _opens_next_step(obj, status) else later, woken)


def _opens_next_step(obj: ManagedObject, status: Mapping[str, Any]) -> bool:
    """Tell whether something was written down that the next step waited for.

    That is: preflight has passed, inputs are known, or a trial of a sweep has ended.
    """
    known = status.get("inputReferences") != obj.status.get("inputReferences")
    ended = _trials_ended(status) != _trials_ended(obj.status)
    return known or ended or (_passed(status) and not obj.holds(ConditionType.PREFLIGHT))


def _trials_ended(status: Mapping[str, Any]) -> int:
    return sum(row.get("state") in FINAL_TRIAL_STATES for row in status.get("trials") or ())


def _passed(status: Mapping[str, Any]) -> bool:
    return any(
        condition["type"] == ConditionType.PREFLIGHT.value and condition["reason"] == "PreflightPassed"
        for condition in status["conditions"]
    )


def _mark_preflight(services: ReconcileContext, obj: ManagedObject) -> None:
    """Mark the preflight Job once its report is written down: in a look of its own, since training comes first."""
    if obj.holds(ConditionType.PREFLIGHT):
        name = child_name(obj.owner.key.name, Task.PREFLIGHT.value)
        mark_done(services, obj.owner, [services.cache.job(obj.owner.key.namespace, name)])
