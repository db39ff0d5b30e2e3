"""Provide the reconcile of a kind that runs Jobs: observe, plan, apply, compute the status, one write, events.

`reconcile_job` is the frame. Each kind has a file with its `KindSteps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from tunery_api.errors import InvalidSpec
from tunery_api.fields import KindSpec
from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_api.sweepstatus import FINAL_TRIAL_STATES
from tunery_operator.client.apply import status_change
from tunery_operator.controllers.after_finish import jobs_of, mark_done, reconcile_finished, seconds_to_live, stop_jobs
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.fetch import sync_fetch
from tunery_operator.controllers.jobs import own_leftovers, sync_suspend
from tunery_operator.controllers.observe import ManagedObject, find_object
from tunery_operator.controllers.rejections import blocked_by, rejected_by, rejection_of
from tunery_operator.controllers.status_writer import write_and_record, write_delay
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
from tunery_operator.runtime.reader import read_ended_pods
from tunery_operator.runtime.workqueue import DONE, Requeue, earliest
from tunery_operator.status.compute import compute_status
from tunery_operator.status.deadline import open_attempts, requeue_after
from tunery_operator.status.retries import reopened
from tunery_operator.status.snapshot import Snapshot

Spec = TypeVar("Spec", bound=KindSpec)


@dataclass(frozen=True, slots=True)
class KindSteps(Generic[Spec]):
    """The steps of one kind."""

    parse: Callable[[dict[str, Any]], Spec]
    """Return the spec of an object. Raises InvalidSpec."""
    observe: Callable[[ReconcileContext, ManagedObject], Snapshot]
    """Return what is in the cluster."""
    apply: Callable[[ReconcileContext, ManagedObject, Spec, Snapshot], Snapshot]
    """Plan and apply the next step, and return what is in the cluster then."""
    job_names: Callable[[ManagedObject], tuple[str, ...]]
    """Return the names of the Jobs whose pods must end before a new one is created; the main Job first."""


class PartialReconcile(OperatorError):
    """The API server rejected a step halfway; the status still shows what was observed by then."""

    def __init__(self, observed: Snapshot, cause: ApiFailure | Rejected) -> None:
        self.observed = observed
        self.cause = cause
        self.retry_after = cause.retry_after
        super().__init__(str(cause))


def reconcile_job(context: ReconcileContext, key: Key, steps: KindSteps[Spec]) -> Requeue:
    """Reconcile one object that runs Jobs, and return when to reconcile it again; idempotent."""
    obj = find_object(context, key)
    if obj is None:
        context.backoff.reset(key)
        return DONE
    requeue = _reconcile(context, obj, steps)
    return replace(requeue, after=earliest(requeue.after, sync_fetch(context, obj)))


def _reconcile(context: ReconcileContext, obj: ManagedObject, steps: KindSteps[Spec]) -> Requeue:
    """Reconcile the object itself, and return when to reconcile it again."""
    if obj.finished:
        context.backoff.reset(obj.owner.key)
        return reconcile_finished(context, obj)
    observed = steps.observe(context, obj)
    snapshot, retry_in = _apply_and_retry(context, obj, steps, observed)
    if retry_in is None and _is_first_job(obj, observed, snapshot) and context.has_backlog():
        # In a burst, Jobs are created before statuses are written: the next reconcile writes this one.
        return Requeue(0.0, priority=Priority.LOW)
    snapshot = _with_leftovers(context, obj, steps.job_names(obj), observed, snapshot)
    return update_status(context, obj, snapshot, retry_in)


def _with_leftovers(
    context: ReconcileContext, obj: ManagedObject, job_names: tuple[str, ...], before: Snapshot, snapshot: Snapshot
) -> Snapshot:
    """Return the snapshot with the pods whose Job was deleted."""
    known = {attempt.job.uid for attempt in (snapshot.preflight, snapshot.main) if attempt is not None}
    remaining = [pod for name in job_names for pod in own_leftovers(context, obj.owner, name)]
    context.cache.state(obj.owner.key).stale = False
    pods = [pod for pod in remaining if pod.job_uid not in known]
    pods.extend(_ended_pods_of_deleted_jobs(before, known))
    # Read the lost pods after the leftovers, so that a pod that ends in between is in at least one of them.
    snapshot = replace(snapshot, lost_pods=context.cache.state(obj.owner.key).lost.get(job_names[0], ()))
    pods.extend(_ended_pods_without_job(context, obj, job_names[0], snapshot))
    return replace(snapshot, leftovers=tuple(pods))


def _ended_pods_of_deleted_jobs(before: Snapshot, known: set[str]) -> Iterator[PodView]:
    """Yield the ended pods of Jobs that this reconcile deleted. Their ends may not be in the attempt history yet."""
    for attempt in (before.preflight, before.main):
        if attempt is not None and attempt.job.uid not in known:
            yield from (pod for pod in attempt.pods if pod.finished)


def _ended_pods_without_job(
    context: ReconcileContext, obj: ManagedObject, job_name: str, snapshot: Snapshot
) -> tuple[PodView, ...]:
    """Return the pods that ended after their Job was deleted, if their ends are not in the status yet."""
    lost_uids = open_attempts(obj.status) & {lost.uid for lost in snapshot.lost_pods}
    if snapshot.main is not None or not lost_uids:
        return ()
    return read_ended_pods(context.client, obj.owner.key.namespace, job_name, lost_uids, context.now())


def _is_first_job(obj: ManagedObject, before: Snapshot, after: Snapshot) -> bool:
    """Return whether this reconcile created the first Job of an object without a status."""
    none = before.preflight is None and before.main is None
    return not obj.status and none and (after.preflight is not None or after.main is not None)


def _apply_and_retry(
    context: ReconcileContext, obj: ManagedObject, steps: KindSteps[Spec], snapshot: Snapshot
) -> tuple[Snapshot, float | None]:
    """Return the snapshot after one step, with what blocks it, and the seconds until the next try; None: no retry."""
    key = obj.owner.key
    try:
        stepped = _apply_spec(context, obj, steps, snapshot)
    except PartialReconcile as error:
        wait = context.backoff.next(key)
        return replace(error.observed, rejection=rejection_of(error.cause)), max(wait, error.retry_after or 0.0)
    except (ApiFailure, FieldContested, AwaitingDeletion, PreflightsFull) as error:
        wait = context.backoff.next(key)
        return replace(snapshot, **blocked_by(error)), max(wait, error.retry_after or 0.0)
    except NameTaken as error:
        stepped = replace(snapshot, **blocked_by(error))
    context.backoff.reset(key)
    return stepped, None


def _apply_spec(context: ReconcileContext, obj: ManagedObject, steps: KindSteps[Spec], snapshot: Snapshot) -> Snapshot:
    """Parse the spec and apply the next step.

    A spec that was accepted once stays accepted. If the current rules or settings reject it, its Jobs continue, and the
    status shows what blocks the next step.
    """
    accepted = obj.was_accepted() or snapshot.main is not None or snapshot.preflight is not None
    try:
        return steps.apply(context, obj, steps.parse(obj.body), snapshot)
    except InvalidSpec as error:
        if not accepted:
            return replace(snapshot, errors=error.errors)
        return _sync_existing_jobs(context, replace(snapshot, planning_errors=error.errors))
    except Rejected as error:
        return replace(snapshot, **rejected_by(obj, snapshot.platform, error, accepted=accepted))


def _sync_existing_jobs(context: ReconcileContext, snapshot: Snapshot) -> Snapshot:
    """Suspend or resume the Jobs that exist, and change nothing else of them."""

    def synced(attempt: Attempt | None) -> Attempt | None:
        if attempt is None or attempt.job.finished:
            return attempt
        return sync_suspend(context, snapshot.owner, attempt, suspend=snapshot.suspend)

    return replace(snapshot, preflight=synced(snapshot.preflight), main=synced(snapshot.main))


_BATCH_PROGRESS: Final = {"lines", "answered", "errors", "promptTokens", "completionTokens", "answeredBy"}
_FREQUENT: Final = frozenset(
    {"progress", "metrics", "evaluations", "curve", "findings", "checks", "checkpoint"} | _BATCH_PROGRESS
)
"""Fields that a pod changes every few seconds: written at most once in progress.writeSeconds."""


def update_status(context: ReconcileContext, obj: ManagedObject, snapshot: Snapshot, retry_in: float | None) -> Requeue:
    """Compute the status, delete the Jobs of an ended object, write the status if it changed, and record events.

    `retry_in` is the number of seconds until a blocked step is tried again; None: no step is blocked. If the new status
    allows the next step, the object is requeued at once.
    """
    status = compute_status(snapshot)
    if status["phase"] in (Phase.FAILED.value, Phase.STOPPED.value):
        # Before the status is written: after a crash in between, the next reconcile computes the same status again.
        stop_jobs(context, snapshot)
    mark_removed_trials(context, obj, status)
    change = status_change(obj.body, status)
    later = earliest(retry_in, requeue_after(snapshot, status))
    wait = write_delay(context, obj, change, _FREQUENT)
    if not change or wait > 0:
        _mark_preflight(context, obj)
        return Requeue(earliest(later, wait if change else None))
    keys_to_requeue = write_and_record(context, obj, status, change)
    if status["phase"] in FINAL_PHASES:
        mark_done(context, obj.owner, [attempt.job for attempt in jobs_of(snapshot)])
        if reopened(status, obj.retry) is not None:
            # A retry was requested while the trials of a sweep were still ending; no watch event follows.
            return Requeue(0.0, keys_to_requeue)
        return Requeue(seconds_to_live(context, obj, status), keys_to_requeue)
    return Requeue(0.0 if _opens_next_step(obj, status) else later, keys_to_requeue)


def _opens_next_step(obj: ManagedObject, status: Mapping[str, Any]) -> bool:
    """Return whether the next step waited for this status: preflight passed, inputs resolved, or a trial ended."""
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
    """Mark the preflight Job as done once the status has its report: in a later reconcile, as training comes first."""
    if obj.has_true(ConditionType.PREFLIGHT):
        name = child_name(obj.owner.key.name, Task.PREFLIGHT.value)
        mark_done(context, obj.owner, [context.cache.jobs.get(obj.owner.key.namespace, name)])
