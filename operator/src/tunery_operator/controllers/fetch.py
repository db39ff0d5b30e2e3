"""Provide the fetch Job of an object: it serves the results while the annotation `tunery.dev/fetch` is valid.

The Job isn't part of the object's work: the status, the attempts and the retries don't depend on it.
"""

from __future__ import annotations

import logging
from typing import Final

from tunery_api.errors import InvalidSpec
from tunery_api.fetching import FetchRequest, parse_fetch_request
from tunery_api.names import FETCH_ANNOTATION
from tunery_api.runspec import Task
from tunery_operator.client import apply
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.jobs import delete_job
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.errors import ApiFailure, AwaitingDeletion, NameTaken, OwnerGone, Rejected
from tunery_operator.manifests.job import build_job
from tunery_operator.observed.event import Event
from tunery_operator.observed.job import parse_job
from tunery_operator.planning.fetch import plan_fetch

FETCH_IGNORED: Final = "FetchIgnored"
FETCH_FAILED: Final = "FetchFailed"
"""Reasons of warnings: the annotation is not valid, or the Job can't be created."""
RETRY_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)


def sync_fetch(context: ReconcileContext, obj: ManagedObject) -> float | None:
    """Create, replace or delete the fetch Job of an object as its annotation requests.

    Return the seconds until the next call is due; None: none is. Failures are reported as events: they don't block the
    object.
    """
    key, value = obj.owner.key, obj.owner.annotations.get(FETCH_ANNOTATION)
    job = context.cache.jobs.get(key.namespace, obj.job_name(Task.FETCH))
    job = job if job is not None and job.owner_uid == obj.owner.uid else None
    if value is None and job is None:
        return None
    request = _valid_request(context, obj, value)
    try:
        if job is not None and (request is None or job.settings != str(request)):
            delete_job(context, obj.owner, job)
            job = None
        if request is None:
            return None
        if job is None and not _create(context, obj, request):
            return RETRY_SECONDS
    except OwnerGone:
        return None
    except AwaitingDeletion as error:
        return error.retry_after
    except (ApiFailure, InvalidSpec, NameTaken, Rejected) as error:
        logger.info("Failed to create the fetch Job: object=%s error=%s", key, error)
        _warn(context, obj, FETCH_FAILED, f"the results can't be fetched: {error}", value)
        return RETRY_SECONDS
    return max(0.0, request.seconds_left(context.now()))


def _valid_request(context: ReconcileContext, obj: ManagedObject, value: str | None) -> FetchRequest | None:
    """Return the request of an object, or None if it has no valid one or is being deleted."""
    if value is None or "deletionTimestamp" in obj.body["metadata"]:
        return None
    try:
        return parse_fetch_request(value, context.now())
    except ValueError as error:
        _warn(context, obj, FETCH_IGNORED, f"the annotation {FETCH_ANNOTATION} is ignored: {error}", value)
        return None


def _create(context: ReconcileContext, obj: ManagedObject, request: FetchRequest) -> bool:
    """Create the Job; return whether the Job of that name is the one of this request.

    Raises what `plan_fetch` and `create_job` raise.
    """
    plan = plan_fetch(obj.body, obj.owner, context.platform, request, request.seconds_left(context.now()))
    job = parse_job(apply.create_job(context.client, obj.owner, build_job(plan)))
    context.cache.jobs.put(job)
    return job.settings == str(request)


def _warn(context: ReconcileContext, obj: ManagedObject, reason: str, note: str, value: str | None) -> None:
    context.events.record(obj.owner, [Event(reason, note, warning=True, time=value or "")])
