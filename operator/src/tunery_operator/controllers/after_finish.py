"""Provide the reconcile of a finished object: its Jobs end and are marked as done, a retry reopens it, it expires."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tunery_api.runspec import Task
from tunery_operator.client import apply
from tunery_operator.client.apply import status_change
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.inputs import is_awaited, refresh_inputs
from tunery_operator.controllers.jobs import delete_job
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.controllers.status_writer import write_and_record
from tunery_operator.errors import ApiFailure
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import Owner, parse_time, time_to_live
from tunery_operator.runtime.workqueue import DONE, Requeue
from tunery_operator.status.conditions import final_status, retried_status
from tunery_operator.status.retries import rejects_retry, reopened, requested_retry
from tunery_operator.status.snapshot import Snapshot

AWAITED_POLL_SECONDS: Final = 30.0
"""Period in which an expired object checks whether another object still waits for it."""
DELETION_POLL_SECONDS: Final = 1.0
"""Period in which a retry checks whether its former Jobs are deleted."""

logger = logging.getLogger(__name__)


def jobs_of(snapshot: Snapshot) -> Iterator[Attempt]:
    """Yield the Jobs of an object that exist."""
    yield from (
        job for job in (snapshot.preflight, snapshot.main, snapshot.report, snapshot.publishing) if job is not None
    )


def stop_jobs(context: ReconcileContext, snapshot: Snapshot) -> None:
    """Delete the unfinished Jobs of a failed or stopped object, before its end is written."""
    for attempt in jobs_of(snapshot):
        if not attempt.job.finished:
            delete_job(context, snapshot.owner, attempt.job)


def mark_done(context: ReconcileContext, owner: Owner, jobs: Iterable[JobView | None]) -> None:
    """Mark finished Jobs as done, which ends their watch. One that can't be marked is still watched."""
    for job in jobs:
        if job is None or job.done or not job.finished or job.owner_uid != owner.uid:
            continue
        try:
            apply.mark_job_done(context.client, owner.key.namespace, job)
        except ApiFailure as error:
            logger.info("Job %s of %s is not marked as done: %s", job.name, owner.key, error)


def reconcile_finished(context: ReconcileContext, obj: ManagedObject) -> Requeue:
    """Reconcile an object that has ended, and return when to reconcile it again."""
    names = [obj.job_name(task) for task in Task if task is not Task.FETCH]
    mark = requested_retry(obj.status, obj.retry)
    if mark is not None and rejects_retry(str(obj.status.get("phase")), of_trial=obj.owner.sweep is not None):
        return _reject_retry(context, obj, mark)
    if (status := reopened(obj.status, obj.retry)) is not None:
        return _reopen(context, obj, refresh_inputs(context, obj, status), names)
    if change := status_change(obj.body, noted := _with_spec_change(context, obj)):
        return Requeue(0.0, write_and_record(context, obj, noted, change))
    jobs = [job for name in names if (job := context.cache.jobs.get(obj.owner.key.namespace, name)) is not None]
    for job in jobs:
        # The operator was killed before it deleted them, or another client wrote the status.
        if not job.finished and job.owner_uid == obj.owner.uid:
            delete_job(context, obj.owner, job)
    mark_done(context, obj.owner, jobs)
    return _expire(context, obj)


def _with_spec_change(context: ReconcileContext, obj: ManagedObject) -> dict[str, Any]:
    """Return the status after a change of the spec since the end, or an upgrade of the operator."""
    if "observedGeneration" not in obj.status:
        return dict(obj.status)
    return final_status(obj.status, obj.owner.generation, context.now())


def _reject_retry(context: ReconcileContext, obj: ManagedObject, mark: str) -> Requeue:
    """Record a requested retry as rejected: the object is a trial, has succeeded, or was stopped."""
    noted = {**_with_spec_change(context, obj), "observedRetry": mark}
    return Requeue(0.0, write_and_record(context, obj, noted, status_change(obj.body, noted)))


def _reopen(context: ReconcileContext, obj: ManagedObject, status: Mapping[str, Any], names: Iterable[str]) -> Requeue:
    """Reopen a failed object once its former Jobs are deleted: their failure must not count again."""
    owner = obj.owner
    old = [job for name in names if (job := apply.find_job(context.client, owner, name)) is not None]
    for job in old:
        delete_job(context, owner, job)
    if any(apply.find_job(context.client, owner, job.name) is not None for job in old):
        return Requeue(DELETION_POLL_SECONDS)
    status = retried_status(status, owner.generation, context.now())
    keys_to_requeue = write_and_record(context, obj, status, status_change(obj.body, status))
    return Requeue(0.0, keys_to_requeue)


def seconds_to_live(context: ReconcileContext, obj: ManagedObject, status: Mapping[str, Any]) -> float | None:
    """Return the seconds until a finished object expires; None: it does not."""
    ended = parse_time(status.get("completionTime"))
    ttl = time_to_live(obj.body, context.platform.settings.default_ttl_seconds_after_finished)
    if ended is None or ttl is None:
        return None
    return ttl - (context.now() - ended).total_seconds()


def _expire(context: ReconcileContext, obj: ManagedObject) -> Requeue:
    """Delete an expired object, unless another object still waits for its result."""
    seconds = seconds_to_live(context, obj, obj.status)
    if seconds is None or seconds > 0:
        return DONE if seconds is None else Requeue(seconds)
    if is_awaited(context, obj):
        return Requeue(AWAITED_POLL_SECONDS)
    apply.delete_object(context.client, obj.owner, obj.version)
    return DONE
