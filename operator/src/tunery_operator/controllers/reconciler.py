"""Provide the reconcile of every kind that runs Jobs: observe, plan, apply, compute the status, one write, events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.failures import Failure
from tunery_api.lifecycle import KindSpec
from tunery_api.names import child_name
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Task
from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_api.sweepstatus import FINAL_TRIAL_STATES
from tunery_operator.client.read import read_ended_pods
from tunery_operator.client.status import status_change
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.finished import jobs_of, mark_done, reconcile_finished, seconds_to_live, stop_jobs
from tunery_operator.controllers.jobs import own_leftovers, sync_suspend
from tunery_operator.controllers.observe import ManagedObject, find_object
from tunery_operator.controllers.rejections import ambiguous_rejection, field_of, rejection_of
from tunery_operator.controllers.status_writer import write, write_delay
from tunery_operator.controllers.trials import mark_removed_trials
from tunery_operator.errors import (
    ApiFailure,
    AwaitingDeletion,
    FieldContested,
    NameTaken,
    OperatorError,
    PreflightsFull,
    Rejected,
)
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.pod import PodView
from tunery_operator.runtime.priority_queue import Priority
from tunery_operator.runtime.workqueue import DONE, Requeue, earliest
from tunery_operator.status.compute import compute_status
from tunery_operator.status.ledger import open_attempts
from tunery_operator.status.phase import WAITING_FOR_SLOT
from tunery_operator.status.requeue_after import requeue_after
from tunery_operator.status.retry_requested import reopened
from tunery_operator.status.snapshot import Snapshot

Spec = TypeVar("Spec", bound=KindSpec)


@dataclass(frozen=True, slots=True)
class KindSteps(Generic[Spec]):
    """What each kind does in its own way."""

    parse: Callable[[dict[str, Any]], Spec]
    """Raises InvalidSpec."""
    observe: Callable[[ReconcileContext, ManagedObject], Snapshot]
    """Returns what is in the cluster."""
    apply: Callable[[ReconcileContext, ManagedObject, Spec, Snapshot], Snapshot]
    """Makes what comes next, and returns what is in the cluster then."""
    job_names: Callable[[ManagedObject], tuple[str, ...]]
    """The names of the Jobs whose pods must end before a new one is made."""


class PartialReconcile(OperatorError):
    """The cluster has refused a step in the middle of a look; what was seen by then is told all the same."""

    def __init__(self, seen: Snapshot, cause: ApiFailure | Rejected) -> None:
        self.seen = seen
        self.cause = cause
        self.retry_after = cause.retry_after
        super().__init__(str(cause))


def reconcile_job(context: ReconcileContext, key: Key, steps: KindSteps[Spec]) -> Requeue:
    """Bring one object that runs Jobs a step further; gives the same answer however often it is asked."""
    obj = find_object(context, key)
    if obj is None or obj.finished:
        context.backoff.reset(key)
        return DONE if obj is None else reconcile_finished(context, obj)
    gathered = steps.observe(context, obj)
    snapshot, retry_in = _apply_and_retry(context, obj, steps, gathered)
    if retry_in is None and _is_first_job(obj, gathered, snapshot) and context.has_backlog():
        # In a burst, Jobs are created before statuses are written: the next reconcile writes this one.
        return Requeue(0.0, priority=Priority.LOW)
    known = {attempt.job.uid for attempt in (snapshot.preflight, snapshot.main) if attempt is not None}
    remaining = [pod for name in steps.job_names(obj) for pod in own_leftovers(context, obj.owner, name)]
    context.cache.mark_fresh(key)
    others = [pod for pod in remaining if pod.job_uid not in known]
    others.extend(_ended_pods_of_deleted_jobs(gathered, known))
    # After the leftovers: a pod that goes meanwhile is among one of the two.
    lost = context.cache.lost_named(key.namespace, steps.job_names(obj)[0])
    snapshot = replace(snapshot, lost_pods=lost)
    others.extend(_ended_pods_without_job(context, obj, steps, snapshot))
    return update_status(context, obj, replace(snapshot, leftovers=tuple(others)), retry_in)


def _ended_pods_of_deleted_jobs(before: Snapshot, known: set[str]) -> Iterator[PodView]:
    """Yield the pods that had ended of Jobs which this step has removed: the ledger may not have their end yet."""
    for attempt in (before.preflight, before.main):
        if attempt is not None and attempt.job.uid not in known:
            yield from (pod for pod in attempt.pods if pod.finished)


def _ended_pods_without_job(
    context: ReconcileContext, obj: ManagedObject, steps: KindSteps[Spec], snapshot: Snapshot
) -> tuple[PodView, ...]:
    """Return the pods that have ended after their Job was gone, as far as they are there and not written down yet."""
    gone = open_attempts(obj.status) & {lost.uid for lost in snapshot.lost_pods}
    if snapshot.main is not None or not gone:
        return ()
    work = steps.job_names(obj)[0]
    return read_ended_pods(context.client, obj.owner.key.namespace, work, gone, context.now())


def _is_first_job(obj: ManagedObject, before: Snapshot, after: Snapshot) -> bool:
    """Tell whether this look has made the first Job of an object of which nothing was told yet."""
    none = before.preflight is None and before.main is None
    return not obj.status and none and (after.preflight is not None or after.main is not None)


def _apply_and_retry(
    context: ReconcileContext, obj: ManagedObject, steps: KindSteps[Spec], snapshot: Snapshot
) -> tuple[Snapshot, float | None]:
    """Return the snapshot after one step, with whatever stood in its way; and when to try that again, in seconds."""
    key = obj.owner.key
    try:
        stepped = _apply_spec(context, obj, steps, snapshot)
    except PartialReconcile as cut:
        wait = context.backoff.next(key)
        return replace(cut.seen, rejection=rejection_of(cut.cause)), max(wait, cut.retry_after or 0.0)
    except (ApiFailure, FieldContested, AwaitingDeletion, PreflightsFull) as error:
        wait = context.backoff.next(key)
        return _hampered(snapshot, error), max(wait, error.retry_after or 0.0)
    except NameTaken as error:
        stepped = replace(snapshot, conflict=str(error))
    context.backoff.reset(key)
    return stepped, None


def _hampered(snapshot: Snapshot, error: OperatorError) -> Snapshot:
    if isinstance(error, ApiFailure):
        return replace(snapshot, rejection=rejection_of(error))
    if isinstance(error, FieldContested):
        return replace(snapshot, rejection=Failure(reason=FailureReason.FIELD_CONTESTED, message=str(error)))
    if isinstance(error, PreflightsFull):
        return replace(snapshot, waiting_for=str(error), waiting_reason=WAITING_FOR_SLOT)
    return replace(snapshot, waiting_for=str(error))


def _apply_spec(context: ReconcileContext, obj: ManagedObject, steps: KindSteps[Spec], snapshot: Snapshot) -> Snapshot:
    """Go one step further; a spec that was accepted before is judged no more.

    What today's rules or settings would refuse in it is waited for, and the Job that it has is followed on.
    """
    accepted = obj.was_accepted() or snapshot.main is not None or snapshot.preflight is not None
    try:
        return steps.apply(context, obj, steps.parse(obj.body), snapshot)
    except InvalidSpec as error:
        if not accepted:
            return replace(snapshot, errors=error.errors)
        return _sync_existing_jobs(context, replace(snapshot, unplannable=error.errors))
    except Rejected as error:
        field = None if accepted else field_of(obj, error)
        if field is not None:
            return replace(snapshot, errors=(FieldError(field, str(error)),))
        return replace(snapshot, rejection=ambiguous_rejection(obj, snapshot.platform, error))


def _sync_existing_jobs(context: ReconcileContext, snapshot: Snapshot) -> Snapshot:
    def carry_over(attempt: Attempt | None) -> Attempt | None:
        if attempt is None or attempt.job.finished:
            return attempt
        return sync_suspend(context, snapshot.owner, attempt, suspend=snapshot.suspend)

    return replace(snapshot, preflight=carry_over(snapshot.preflight), main=carry_over(snapshot.main))


_BATCH_PROGRESS: Final = {"lines", "answered", "errors", "promptTokens", "completionTokens", "answeredBy"}
_FREQUENT: Final = frozenset(
    {"progress", "metrics", "evaluations", "findings", "checks", "checkpoint"} | _BATCH_PROGRESS
)
"""Fields that a pod changes every few seconds: written at most once in progress.writeSeconds."""


def update_status(context: ReconcileContext, obj: ManagedObject, snapshot: Snapshot, retry_in: float | None) -> Requeue:
    """Bring the object's status up to date; look again at once where that opens the next step.

    `retry_in` is when to try again what could not be done; None: everything was done.
    """
    status = compute_status(snapshot)
    if status["phase"] in (Phase.FAILED.value, Phase.STOPPED.value):
        # A kill between the two leads to the same end: the next look finds the object as it was, without its Jobs.
        stop_jobs(context, snapshot)
    mark_removed_trials(context, obj, status)
    change = status_change(obj.body, status)
    later = earliest(retry_in, requeue_after(snapshot, status))
    wait = write_delay(context, obj, change, _FREQUENT)
    if not change or wait > 0:
        _mark_preflight(context, obj)
        return Requeue(earliest(later, wait if change else None))
    woken = write(context, obj, status, change)
    if status["phase"] in FINAL_PHASES:
        mark_done(context, obj.owner, [attempt.job for attempt in jobs_of(snapshot)])
        if reopened(status, obj.retry) is not None:
            # Asked for while trials of a sweep still ended; no watch tells of it any more.
            return Requeue(0.0, woken)
        return Requeue(seconds_to_live(context, obj, status), woken)
    return Requeue(0.0 if _opens_next_step(obj, status) else later, woken)


def _opens_next_step(obj: ManagedObject, status: Mapping[str, Any]) -> bool:
    """Tell whether something was written down that the next step waited for.

    That is: preflight has passed, inputs are known, or a trial of a sweep has ended.
    """
    known = status.get("inputReferences") != obj.status.get("inputReferences")
    ended = _trials_ended(status) != _trials_ended(obj.status)
    return known or ended or (_passed(status) and not obj.has_true(ConditionType.PREFLIGHT))


def _trials_ended(status: Mapping[str, Any]) -> int:
    return sum(row.get("state") in FINAL_TRIAL_STATES for row in status.get("trials") or ())


def _passed(status: Mapping[str, Any]) -> bool:
    return any(
        condition["type"] == ConditionType.PREFLIGHT.value and condition["reason"] == "PreflightPassed"
        for condition in status["conditions"]
    )


def _mark_preflight(context: ReconcileContext, obj: ManagedObject) -> None:
    """Mark the preflight Job once its report is written down: in a look of its own, since training comes first."""
    if obj.has_true(ConditionType.PREFLIGHT):
        name = child_name(obj.owner.key.name, Task.PREFLIGHT.value)
        mark_done(context, obj.owner, [context.cache.job(obj.owner.key.namespace, name)])
