"""What every kind gathers: the Job that does the work, and the one that says again what it published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunery_api.names import KUEUE_LABELS
from tunery_api.runspec import Task
from tunery_operator.client.read import read_attempt
from tunery_operator.controllers.children import ensure_attempt, remove
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.managed_object import ManagedObject, first_snapshot
from tunery_operator.controllers.warnings import with_warnings
from tunery_operator.observed.attempt import Attempt
from tunery_operator.planning.types import JobPlan
from tunery_operator.status.ledger import deadline_left
from tunery_operator.status.result_recovery import needs_report, succeeded_pod
from tunery_operator.status.snapshot import Snapshot


def find_attempt(services: ReconcileContext, obj: ManagedObject, task: Task) -> Attempt | None:
    """Return the owner's Job for a task, with its pods and what the cluster says against them, or None."""
    owner = obj.owner
    attempt = read_attempt(services.client, services.cache, owner, obj.job_name(task))
    return with_warnings(services.warnings, services.client, owner.key.namespace, attempt, services.now())


def gather_main_job(services: ReconcileContext, obj: ManagedObject, task: Task) -> Snapshot:
    """Return the snapshot with the Job that does the work, which `task` names."""
    main = find_attempt(services, obj, task)
    complete = main is not None and main.job.complete
    return replace(
        first_snapshot(services, obj),
        main=main,
        lost_pods=services.cache.lost_named(obj.owner.key.namespace, obj.job_name(task)),
        queue=main.job.queue if main is not None else obj.owner.labels.get(KUEUE_LABELS[0]) or None,
        report=find_attempt(services, obj, Task.REPORT) if complete else None,
    )


def is_silent(attempt: Attempt) -> bool:
    """Tell whether a complete Job has no pod left that could say what it found; it may be made again without harm.

    A pod that is there and says nothing to the purpose would not do so the next time.
    """
    return attempt.job.complete and succeeded_pod(attempt) is None


def is_overdue(snapshot: Snapshot) -> bool:
    """Tell whether the pods have had all the time that they may have: no Job is made for the end to stop at once."""
    left = deadline_left(snapshot)
    return left is not None and left <= 0


def report_again(
    services: ReconcileContext, obj: ManagedObject, snapshot: Snapshot, plan: Callable[[], JobPlan]
) -> Snapshot:
    """Let a small Job say again what a complete one has published, where its own words are gone; errors as `plan`'s."""
    if not needs_report(snapshot):
        return snapshot
    if snapshot.report is not None and is_silent(snapshot.report):
        # Its words are gone, too.
        remove(services, obj.owner, snapshot.report.job)
        snapshot = replace(snapshot, report=None)
    # The work is done: there is nothing that a suspension could stop.
    started = ensure_attempt(services, obj, replace(plan(), suspend=False), snapshot.report)
    return replace(snapshot, report=started)
