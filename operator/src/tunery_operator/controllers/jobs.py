"""Provide the Jobs of an object: create, suspend, stop, delete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from tunery_api.reasons import ExitCode
from tunery_api.runspec import Task
from tunery_api.status import ConditionType, Phase
from tunery_operator.client import apply
from tunery_operator.client.client import Json
from tunery_operator.client.permissions import GET_JOB, JOBS, SERVICES
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.errors import AwaitingDeletion, NameTaken, OwnerGone, PreflightsFull, StaleObject
from tunery_operator.manifests.job import build_job, build_service
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.job import JobView, parse_job
from tunery_operator.observed.metadata import Owner, parse_time
from tunery_operator.observed.pod import PodView, outlives
from tunery_operator.planning.job import JobPlan
from tunery_operator.runtime.cache import oldest_first
from tunery_operator.runtime.reader import read_attempt, read_live
from tunery_operator.status.queue import is_queued
from tunery_operator.status.reports import first_pod_succeeded, publishes_alone
from tunery_operator.status.results import needs_report, succeeded_pod
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stop import Stop

_FINAL_EXIT_CODES: Final = frozenset({ExitCode.OK, ExitCode.USER_ERROR})
"""Exit codes of a pod after which its Job ends."""


def ensure_job(context: ReconcileContext, obj: ManagedObject, plan: JobPlan, attempt: Attempt | None) -> Attempt | None:
    """Return the Job of a plan, created if it is missing and the object is not suspended.

    Raises NameTaken, AwaitingDeletion, PreflightsFull, FieldContested, StaleObject, OwnerGone, Rejected, ApiFailure.
    """
    if attempt is not None and attempt.job.finished:
        return attempt
    if attempt is not None and _is_outdated(plan, attempt):
        delete_job(context, plan.owner, attempt.job)
        attempt = None
    attempt = attempt or _find_unwatched(context, obj, plan)
    if attempt is None:
        return None if plan.suspend else _start(context, obj, plan)
    if (attempt.missing or _may_rendezvous(obj)) and not (plan.suspend or attempt.job.suspend):
        _keep_service(context, plan, attempt.job)
    return sync_suspend(context, plan.owner, attempt, suspend=plan.suspend)


def _may_rendezvous(obj: ManagedObject) -> bool:
    """Return whether the pods of several nodes may still look for each other: once training runs, they don't."""
    return obj.status.get("phase") == Phase.STARTING.value


def _is_outdated(plan: JobPlan, attempt: Attempt) -> bool:
    """Return whether the plan of a Job has changed, and no running pod would be lost.

    A plan has the settings of the spec, the settings of the platform, and the certificate authority (CA) of the
    progress endpoint. A queued Job is replaced only if the spec's settings changed. A pod with a final exit code
    counts before the Job controller has seen it. A pod that waits for one without a node has nothing to lose.
    """
    job = attempt.job
    waits = any(pod.node is None and pod.started_at is None and not pod.finished for pod in attempt.newest)
    if any((pod.running and not waits) or pod.exit_code in _FINAL_EXIT_CODES for pod in attempt.pods):
        return False
    platform = job.plan not in (None, plan.digest) or _trusts_other_ca(plan, job)
    return job.settings not in (None, plan.settings) or (platform and not is_queued(job))


def _trusts_other_ca(plan: JobPlan, job: JobView) -> bool:
    """Return whether a Job's pods trust another CA than the current one; False if either is unknown."""
    progress = plan.progress
    return progress is not None and progress.ca_pem != "" and job.authority not in (None, progress.authority)


def delete_job(context: ReconcileContext, owner: Owner, job: JobView) -> None:
    """Delete a Job. Its pods store a checkpoint as they end, and are leftovers until then."""
    apply.delete_job(context.client, owner.key.namespace, job)
    context.cache.delete_job(job)


# Create


def _find_unwatched(context: ReconcileContext, obj: ManagedObject, plan: JobPlan) -> Attempt | None:
    """Return the Job of a plan that no watch reports, such as one whose labels were removed.

    It is read only if one of its pods runs, or the object has just been suspended. Raises NameTaken if it belongs to
    another object.
    """
    runs_on = any(not pod.deleting for pod in own_leftovers(context, plan.owner, plan.name))
    stops = plan.suspend and "jobName" in obj.status and not obj.has_true(ConditionType.SUSPENDED)
    if not runs_on and not stops:
        return None
    found = context.client.get(GET_JOB, plan.owner.key.namespace, plan.name)
    if found is None or "deletionTimestamp" in found["metadata"]:
        return None
    job = parse_job(found)
    if job.owner_uid == plan.owner.uid:
        return Attempt(job, context.cache.pods_of(job.namespace, job.uid))
    if runs_on:
        raise NameTaken(plan.name)
    return None


def _start(context: ReconcileContext, obj: ManagedObject, plan: JobPlan) -> Attempt:
    """Create the Job of a plan, and its Service before it. Raises what `ensure_job` raises."""
    _wait_for_leftovers(context, plan)
    if "jobName" in obj.status:
        _ensure_unchanged(context, obj)
    # Before the pods, which resolve its name at once.
    _ensure_service(context, plan)
    with _preflight_slot(context, plan):
        body = apply.create_job(context.client, plan.owner, build_job(plan))
        context.cache.jobs.put(parse_job(body))
    # A Job that existed already may have progressed: read it with its pods.
    return read_attempt(context.client, context.cache, plan.owner, plan.name) or Attempt(parse_job(body))


def _ensure_service(context: ReconcileContext, plan: JobPlan) -> None:
    """Create the Service by which the pods of several nodes find each other, if it is missing."""
    if plan.nodes > 1:
        apply.create_child(context.client, plan.owner, SERVICES, build_service(plan))


def _keep_service(context: ReconcileContext, plan: JobPlan, job: JobView) -> None:
    """Create that Service again if it was deleted.

    In a namespace that is being deleted this fails. There the Job is deleted, too: a Job of several nodes keeps each
    ended pod until it has replaced it, and the namespace controller waits for the pods. Raises OwnerGone then.
    """
    try:
        _ensure_service(context, plan)
    except OwnerGone:
        delete_job(context, plan.owner, job)
        raise


def _wait_for_leftovers(context: ReconcileContext, plan: JobPlan) -> None:
    """Raise AwaitingDeletion while a pod of an earlier Job has not ended: it still writes its checkpoint.

    Raises NameTaken if that Job still exists and has no owner: it would replace a pod that a user deletes.
    """
    pod = next(iter(leftovers(context, plan.owner, plan.name)), None)
    if pod is not None:
        if not pod.deleting and (found := context.client.get(GET_JOB, pod.namespace, plan.name)) is not None:
            apply.adopt(found, plan.owner, JOBS)
        where = f" on node {pod.node}" if pod.node else ""
        state = f"still ends{where}" if pod.deleting else outlives(pod, where)
        raise AwaitingDeletion(f"pod {pod.name} of an earlier Job, which {state}")


def leftovers(context: ReconcileContext, owner: Owner, name: str) -> tuple[PodView, ...]:
    """Return the pods of earlier Jobs of that name that have not ended."""
    job = context.cache.jobs.get(owner.key.namespace, name)
    pods = oldest_first(context.cache.pods.by_index("job name", (owner.key.namespace, name)))
    others = (pod for pod in pods if job is None or pod.job_uid != job.uid)
    # The garbage collector deletes the pod a moment after its Job.
    return tuple(
        replace(pod, deleting=True) if context.cache.is_being_deleted(pod.namespace, pod.job_uid) else pod
        for pod in others
    )


def _ensure_unchanged(context: ReconcileContext, obj: ManagedObject) -> None:
    """Raise OwnerGone or StaleObject unless the live object is the one observed.

    Otherwise a finished or deleted object could get a second Job, which would train again.
    """
    key = obj.owner.key
    live = read_live(context.client, context.cache, key)
    if live is None or live["metadata"]["uid"] != obj.owner.uid:
        raise OwnerGone(f"{key} is gone")
    if live["metadata"]["resourceVersion"] != obj.version:
        raise StaleObject(f"{key} changed meanwhile")


def own_leftovers(context: ReconcileContext, owner: Owner, name: str) -> tuple[PodView, ...]:
    """Return the leftovers of this object, without those of an earlier object with its name."""
    return tuple(pod for pod in leftovers(context, owner, name) if pod.owner_uid in ("", owner.uid))


@contextmanager
def _preflight_slot(context: ReconcileContext, plan: JobPlan) -> Iterator[None]:
    """Hold a slot for a preflight. Raises PreflightsFull if as many run as the platform allows."""
    limit = context.platform.settings.preflight.max_concurrent
    if limit == 0 or plan.task is not Task.PREFLIGHT:
        yield
        return
    with context.preflights:
        jobs = context.cache.jobs.items()
        running = sum(job.role == Task.PREFLIGHT.value and not job.finished for job in jobs)
        if running >= limit:
            raise PreflightsFull(
                f"a preflight slot: {running} preflights run, and the platform allows {limit} at a time"
            )
        yield


# Follow


def sync_suspend(context: ReconcileContext, owner: Owner, attempt: Attempt, *, suspend: bool) -> Attempt | None:
    """Suspend or resume a Job as the spec states; return None if it was deleted.

    Only Tunery's own suspension is undone. A Job in a queue is deleted, which frees its quota, and created again later:
    the queue would resume a suspended one. Raises FieldContested, ApiFailure.
    """
    job = attempt.job
    if not suspend:
        return _resume(context, owner, attempt) if job.suspended_by_us else attempt
    if job.queue is not None:
        delete_job(context, owner, job)
        return None
    return attempt if job.suspend else _suspend(context, owner, attempt)


def recreate_job(context: ReconcileContext, snapshot: Snapshot) -> Snapshot:
    """Delete a Job of several pods if one has ended for good while the first published, and the first then failed.

    While the first pod published, the run did not need that pod. The next attempt needs it, and this Job creates no
    pod for its index any more. A suspended Job is deleted when it is resumed. Raises ApiFailure.
    """
    attempt = snapshot.main
    if attempt is None or attempt.job.finished or snapshot.suspend:
        return snapshot
    if not attempt.job.makes_no_other or attempt.job.lacks_first:
        return snapshot
    if publishes_alone(snapshot, attempt) or first_pod_succeeded(attempt) or not _needs_all_pods(attempt):
        return snapshot
    delete_job(context, snapshot.owner, attempt.job)
    return replace(snapshot, main=None)


def _needs_all_pods(attempt: Attempt) -> bool:
    """Return whether the first of several pods was disrupted, or has been replaced.

    If it failed or was deleted, the Job controller counts that first, and may end the Job.
    """
    first = attempt.last
    if attempt.job.suspend or (first is not None and first.disruption is not None):
        return True
    ended = [pod.finished_at for pod in attempt.pods if pod.index and pod.finished]
    begun = parse_time(first.created) if first is not None and not first.deleting and not first.finished else None
    return begun is not None and all(time is None or time < begun for time in ended)


def tolerate_worker_failures(context: ReconcileContext, snapshot: Snapshot) -> Snapshot:
    """Keep the Job controller from ending a Job of several pods for a failed one while the first publishes alone.

    Once another first pod starts, which needs all pods, or no first pod can start, the previous limit holds again.
    Raises ApiFailure.
    """
    attempt = snapshot.main
    pod = attempt.last if attempt is not None else None
    if attempt is None or attempt.job.finished or attempt.job.failed_indexes_allowed is None:
        return snapshot
    job, alone = attempt.job, publishes_alone(snapshot, attempt)
    # A deleted pod may be gone before the Job counts it, or before a new leader has seen it.
    is_ending = pod is None or pod.finished or pod.deleting or pod.unanswered
    waits = is_ending or job.suspend or job.lacks_another
    lost_for_good = job.lacks_first and (pod is None or pod.exit_code != ExitCode.OK)
    count = job.nodes if alone else 0
    if count == job.failed_indexes_allowed or (waits and not alone and not lost_for_good):
        return snapshot
    body = apply.allow_failed_indexes(context.client, snapshot.owner.key.namespace, job, count)
    return replace(snapshot, main=_cached(context, attempt, body))


def _suspend(context: ReconcileContext, owner: Owner, attempt: Attempt) -> Attempt:
    with context.conflicts.change(attempt.job.uid, "spec.suspend"):
        return _cached(context, attempt, apply.suspend_job(context.client, owner.key.namespace, attempt.job))


def _resume(context: ReconcileContext, owner: Owner, attempt: Attempt) -> Attempt:
    return _cached(context, attempt, apply.resume_job(context.client, owner.key.namespace, attempt.job))


def _cached(context: ReconcileContext, attempt: Attempt, body: Json | None) -> Attempt:
    if body is None:
        return attempt
    context.cache.jobs.put(parse_job(body))
    return replace(attempt, job=parse_job(body))


def has_lost_report(attempt: Attempt) -> bool:
    """Return whether a complete Job has no pod left with its termination message.

    Such a Job can be created again. If a pod exists and its message is unusable, another run would not improve it.
    """
    return attempt.job.complete and succeeded_pod(attempt) is None


def recover_result(
    context: ReconcileContext, obj: ManagedObject, snapshot: Snapshot, plan: Callable[[], JobPlan]
) -> Snapshot:
    """Create the report Job if the main Job is complete and its report is lost; raises as `ensure_job` and `plan`."""
    if not needs_report(snapshot):
        return snapshot
    if snapshot.report is not None and has_lost_report(snapshot.report):
        delete_job(context, obj.owner, snapshot.report.job)
        snapshot = replace(snapshot, report=None)
    # A suspension holds only training.
    started = ensure_job(context, obj, replace(plan(), suspend=False), snapshot.report)
    return replace(snapshot, report=started)


def apply_stop(
    context: ReconcileContext, obj: ManagedObject, snapshot: Snapshot, stop: Stop, plan: Callable[[], JobPlan]
) -> Snapshot:
    """Delete the Jobs of a stopped object, and create the Job that publishes its partial result once their pods ended.

    A queued or suspended Job is deleted, too, which frees its quota. Raises what `ensure_job` and `plan` raise.
    """
    snapshot = _delete_jobs(context, obj, snapshot)
    publishing, owner = snapshot.publishing, obj.owner
    if publishing is not None and (has_lost_report(publishing) or not (stop.publishes or publishing.job.finished)):
        delete_job(context, owner, publishing.job)
        publishing = None
    train = obj.job_name(Task.TRAIN)
    if not stop.publishes or own_leftovers(context, owner, train):
        return replace(snapshot, publishing=publishing)
    # A suspension holds only training.
    return replace(snapshot, publishing=ensure_job(context, obj, replace(plan(), suspend=False), publishing))


def _delete_jobs(context: ReconcileContext, obj: ManagedObject, snapshot: Snapshot) -> Snapshot:
    """Delete the unfinished preflight and train Jobs."""
    found = {attempt.job.name: attempt.job for attempt in (snapshot.preflight, snapshot.main) if attempt is not None}
    train = obj.job_name(Task.TRAIN)
    if train not in found and "jobName" in obj.status:
        # A Job that no watch reports, such as one whose labels were removed, would train on.
        unwatched = apply.find_job(context.client, obj.owner, train)
        found |= {train: unwatched} if unwatched is not None else {}
    for job in found.values():
        if not job.finished:
            delete_job(context, obj.owner, job)
    main = snapshot.main if snapshot.main is not None and snapshot.main.job.finished else None
    return replace(snapshot, preflight=None, main=main)
