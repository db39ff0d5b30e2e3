"""What both stories gather: the Job that does the work, and the one that says again what it published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunery_api.names import KUEUE_LABELS, child_name
from tunery_api.runspec import Task
from tunery_operator.kube.read import read_attempt
from tunery_operator.plan.model import JobPlan
from tunery_operator.reconcile.children import ensure_attempt, remove
from tunery_operator.reconcile.subject import Subject, first_snapshot
from tunery_operator.reconcile.warnings import with_warnings
from tunery_operator.reconcile.world import World
from tunery_operator.status.ledger import deadline_left
from tunery_operator.status.needs import needs_report, succeeded_pod
from tunery_operator.status.snapshot import Attempt, Snapshot


def find_attempt(world: World, subject: Subject, task: Task) -> Attempt | None:
    """Return the owner's Job for a task, with its pods and what the cluster says against them, or None."""
    owner = subject.owner
    attempt = read_attempt(world.client, world.cache, owner, child_name(owner.key.name, task.value))
    return with_warnings(world.warnings, world.client, owner.key.namespace, attempt, world.now())


def gather_work(world: World, subject: Subject, task: Task) -> Snapshot:
    """Return the snapshot with the Job that does the work, which `task` names."""
    work = find_attempt(world, subject, task)
    complete = work is not None and work.job.complete
    return replace(
        first_snapshot(world, subject),
        work=work,
        lost_pods=world.cache.lost_named(subject.owner.key.namespace, child_name(subject.owner.key.name, task.value)),
        queue=work.job.queue if work is not None else subject.owner.labels.get(KUEUE_LABELS[0]) or None,
        report=find_attempt(world, subject, Task.REPORT) if complete else None,
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


def report_again(world: World, subject: Subject, snapshot: Snapshot, plan: Callable[[], JobPlan]) -> Snapshot:
    """Let a small Job say again what a complete one has published, where its own words are gone; errors as `plan`'s."""
    if not needs_report(snapshot):
        return snapshot
    if snapshot.report is not None and is_silent(snapshot.report):
        # Its words are gone, too.
        remove(world, subject.owner, snapshot.report.job)
        snapshot = replace(snapshot, report=None)
    # The work is done: there is nothing that a suspension could stop.
    started = ensure_attempt(world, subject, replace(plan(), suspend=False), snapshot.report)
    return replace(snapshot, report=started)
