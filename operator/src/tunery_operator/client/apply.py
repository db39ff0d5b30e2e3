"""Create, change, and delete children, write statuses, and compute merge patches.

An object that another program owns is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.names import DONE_LABEL, FIELD_MANAGER, SUSPENDED_BY_ANNOTATION
from tunery_operator.client.client import HttpError, Json, KubeClient
from tunery_operator.client.permissions import (
    DELETE_JOB,
    GET_JOB,
    JOBS,
    PATCH_JOB,
    Call,
    Resource,
    delete_owner,
    patch_status,
)
from tunery_operator.errors import AwaitingDeletion, NameTaken, OwnerGone, Rejected, StaleObject
from tunery_operator.observed.job import JobView, parse_job
from tunery_operator.observed.metadata import Owner, controller_of, foreign_finalizers

_MANAGED: Final = {"fieldManager": FIELD_MANAGER}


def create_job(client: KubeClient, owner: Owner, body: Json) -> Json:
    """Create a Job, or return the one of that name if it is ours already. Raises what `create_child` raises."""
    return create_child(client, owner, JOBS, body)


def create_child(client: KubeClient, owner: Owner, resource: Resource, body: Json) -> Json:
    """Create a child, or return the one of that name if it is ours already.

    Raises NameTaken, AwaitingDeletion, OwnerGone, Rejected, ApiFailure.
    """
    namespace, name = owner.key.namespace, body["metadata"]["name"]
    try:
        return client.request(resource.create, namespace, body=body, query=_MANAGED)
    except HttpError as error:
        if error.status == 409:
            found = client.get(resource.get, namespace, name)
            if found is None:
                raise AwaitingDeletion(f"{resource.kind} {name}, which was there a moment ago") from error
            return adopt(found, owner, resource)
        if error.status == 404 or _is_terminating(error):
            raise OwnerGone(f"namespace {namespace} is being deleted") from error
        _raise_rejected(error)
        raise


def adopt(found: Json, owner: Owner, resource: Resource) -> Json:
    """Return a child that exists already, if it is ours. Raises NameTaken, AwaitingDeletion."""
    controller, child = controller_of(found), f"{resource.kind} {found['metadata']['name']}"
    if controller.get("uid") == owner.uid:
        if "deletionTimestamp" in found["metadata"]:
            raise AwaitingDeletion(f"{child}, which is being deleted{_finalizers_text(found)}")
        return found
    if controller.get("kind") == owner.key.kind.value and controller.get("name") == owner.key.name:
        raise AwaitingDeletion(f"{child} of an earlier object of that name to go{_finalizers_text(found)}")
    raise NameTaken(found["metadata"]["name"], resource.kind)


def is_child(found: Json, owner: Owner) -> bool:
    """Return whether an object is a child of this owner."""
    return controller_of(found).get("uid") == owner.uid


def patch_child(client: KubeClient, resource: Resource, found: Json, change: Json) -> Json:
    """Patch a child and return its new state; without a version in `found`, patch any version.

    Raises StaleObject if it has changed or was deleted since it was read, Rejected, ApiFailure.
    """
    meta = found["metadata"]
    same = {name: meta[name] for name in ("uid", "resourceVersion") if name in meta}
    body = {**change, "metadata": {**change.get("metadata", {}), **same}}
    try:
        return client.request(resource.patch, meta["namespace"], meta["name"], body, _MANAGED)
    except HttpError as error:
        if error.status in (404, 409) and not _is_as_read(client, resource, found):
            raise StaleObject(f"{resource.kind} {meta['namespace']}/{meta['name']} changed meanwhile") from error
        _raise_rejected(error)
        raise


def _is_as_read(client: KubeClient, resource: Resource, found: Json) -> bool:
    """Return whether a child still exists as it was read: a webhook may answer 404 or 409, too."""
    meta = found["metadata"]
    live = client.get(resource.get, meta["namespace"], meta["name"])
    read = {name: meta[name] for name in ("uid", "resourceVersion") if name in meta}
    return live is not None and read.items() <= live["metadata"].items()


def _finalizers_text(child: Json) -> str:
    """Return the part of a message that names the finalizers that keep a deleted child; empty without one."""
    others = foreign_finalizers(child)
    return f"; the finalizer {', '.join(others)} keeps it" if others else ""


def _raise_rejected(error: HttpError) -> None:
    """Raise Rejected if the API server rejects fields of the child."""
    fields = _named_fields(error)
    if fields:
        raise Rejected(str(error.body.get("message", error)), fields) from error


def _named_fields(error: HttpError) -> tuple[str, ...]:
    """Return the invalid fields that a 422 names; that of an admission policy names none."""
    causes = (error.body.get("details") or {}).get("causes") or ()
    return tuple(cause["field"] for cause in causes if cause.get("field")) if error.status == 422 else ()


def _is_terminating(error: HttpError) -> bool:
    causes = (error.body.get("details") or {}).get("causes") or ()
    return error.status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


def suspend_job(client: KubeClient, namespace: str, job: JobView) -> Json | None:
    """Suspend exactly this Job and annotate that Tunery did; None if it is gone."""
    return _patch_job(client, namespace, job, {SUSPENDED_BY_ANNOTATION: "spec"}, {"suspend": True})


def resume_job(client: KubeClient, namespace: str, job: JobView) -> Json | None:
    """Undo our suspension of exactly this Job; None if it is gone. The queue of a queued Job resumes it."""
    spec = {} if job.queue is not None else {"suspend": False}
    return _patch_job(client, namespace, job, {SUSPENDED_BY_ANNOTATION: None}, spec)


def allow_failed_indexes(client: KubeClient, namespace: str, job: JobView, count: int) -> Json | None:
    """Set the number of indexes of exactly this Job that may fail; None if it is gone."""
    return _patch(client, namespace, job.name, {"metadata": {"uid": job.uid}, "spec": {"maxFailedIndexes": count}})


def mark_job_done(client: KubeClient, namespace: str, job: JobView) -> None:
    """Label exactly this Job as done, so that no reflector watches it any more; no error if it is gone."""
    meta = {"uid": job.uid, "labels": {DONE_LABEL: "true"}}
    _patch(client, namespace, job.name, {"metadata": meta})


def _patch_job(
    client: KubeClient, namespace: str, job: JobView, annotations: dict[str, str | None], spec: dict[str, Any]
) -> Json | None:
    body: dict[str, Any] = {"metadata": {"uid": job.uid, "annotations": annotations}}
    return _patch(client, namespace, job.name, {**body, "spec": spec} if spec else body)


def _patch(client: KubeClient, namespace: str, name: str, body: Json) -> Json | None:
    try:
        return client.request(PATCH_JOB, namespace, name, body, _MANAGED)
    except HttpError as error:
        # 409: another Job has the name now.
        if error.status in (404, 409):
            return None
        raise


def find_job(client: KubeClient, owner: Owner, name: str) -> JobView | None:
    """Return the owner's Job of that name, read live: also one that is no longer watched."""
    found = client.get(GET_JOB, owner.key.namespace, name)
    job = parse_job(found) if found is not None else None
    return job if job is not None and job.owner_uid == owner.uid else None


def delete_job(client: KubeClient, namespace: str, job: JobView) -> None:
    """Delete exactly this Job with its pods; no error if it is gone."""
    _delete(client, DELETE_JOB, namespace, job.name, {"uid": job.uid})


def delete_object(client: KubeClient, owner: Owner, version: str) -> None:
    """Delete exactly this version of an object of ours, with its children; no error if it is gone or has changed."""
    key = owner.key
    preconditions = {"uid": owner.uid, "resourceVersion": version}
    _delete(client, delete_owner(key.kind.plural), key.namespace, key.name, preconditions)


def _delete(client: KubeClient, call: Call, namespace: str, name: str, preconditions: dict[str, str]) -> None:
    options = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        # The default for Jobs orphans the pods.
        "propagationPolicy": "Background",
        "preconditions": preconditions,
    }
    try:
        client.request(call, namespace, name, options)
    except HttpError as error:
        if error.status not in (404, 409):
            raise


def status_change(body: Json, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch from the object's status to `status`; empty if nothing changed."""
    return merge_patch(body.get("status") or {}, status)


def write_status(client: KubeClient, owner: Owner, version: str, change: dict[str, Any]) -> Json:
    """Write a change of status and return the new object.

    Raises StaleObject if the object is no longer at `version`, OwnerGone if it is gone.
    """
    key = owner.key
    body = {"metadata": {"uid": owner.uid, "resourceVersion": version}, "status": change}
    try:
        return client.request(patch_status(key.kind.plural), key.namespace, key.name, body, _MANAGED)
    except HttpError as error:
        if error.status == 409:
            raise StaleObject(f"{key} changed meanwhile") from error
        if error.status == 404:
            raise OwnerGone(f"{key} is gone") from error
        raise


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the smallest merge patch (RFC 7386) from `old` to `new`; lists are replaced as a whole."""
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(before, value):
                patch[name] = inner
        elif before != value:
            patch[name] = value
    return patch
