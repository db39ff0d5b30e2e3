"""How a stop is carried out: the Jobs go, their pods end, and a small Job publishes what they have left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunery_api.runspec import Task
from tunery_operator.client import apply
from tunery_operator.controllers.children import ensure_attempt, own_leftovers, remove
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.managed_object import ManagedObject
from tunery_operator.controllers.observe import is_silent
from tunery_operator.planning.types import JobPlan
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stop import Stop


def carry_out(
    services: ReconcileContext, obj: ManagedObject, snapshot: Snapshot, stop: Stop, plan: Callable[[], JobPlan]
) -> Snapshot:
    """Take away what works for an object, and let `plan`'s Job publish once nothing does any more.

    Deleted whether they run, wait in a queue or are held: a queue gives their quota to others, and nobody can start
    them again. Raises what `ensure_attempt` and `plan` raise.
    """
    snapshot = _without_jobs(services, obj, snapshot)
    publishing, owner = snapshot.publishing, obj.owner
    if publishing is not None and (is_silent(publishing) or not (stop.publishes or publishing.job.finished)):
        remove(services, owner, publishing.job)
        publishing = None
    train = obj.job_name(Task.TRAIN)
    if not stop.publishes or own_leftovers(services, owner, train):
        return replace(snapshot, publishing=publishing)
    # A suspension holds what trains, and nothing does any more.
    return replace(snapshot, publishing=ensure_attempt(services, obj, replace(plan(), suspend=False), publishing))


def _without_jobs(services: ReconcileContext, obj: ManagedObject, snapshot: Snapshot) -> Snapshot:
    found = {attempt.job.name: attempt.job for attempt in (snapshot.preflight, snapshot.main) if attempt is not None}
    train = obj.job_name(Task.TRAIN)
    if train not in found and "jobName" in obj.status:
        # One that no watch tells of, such as one whose labels were taken away, would train on.
        unseen = apply.find_job(services.client, obj.owner, train)
        found |= {train: unseen} if unseen is not None else {}
    for job in found.values():
        if not job.finished:
            remove(services, obj.owner, job)
    main = snapshot.main if snapshot.main is not None and snapshot.main.job.finished else None
    return replace(snapshot, preflight=None, main=main)
