"""Create, change and delete children; a stranger's object is never touched."""

from __future__ import annotations

from typing import Any, Final

from tunery_api.names import FIELD_MANAGER
from tunery_operator.errors import NameTaken, OwnerGone, PredecessorRemains, Rejected
from tunery_operator.kube.client import HttpError, Json, KubeClient
from tunery_operator.kube.rbac import (
    CREATE_CONFIG_MAP,
    CREATE_JOB,
    DELETE_JOB,
    GET_CONFIG_MAP,
    GET_JOB,
    PATCH_JOB,
    Call,
    delete_owner,
)
from tunery_operator.plan.model import Owner
from tunery_operator.status.jobview import JobView, controller_of

_MANAGED: Final = {"fieldManager": FIELD_MANAGER}


def create_job(client: KubeClient, owner: Owner, body: Json) -> Json:
    """Create a Job, or return the one of that name if it is ours already; errors as in `_create`."""
    return _create(client, owner, body, CREATE_JOB, GET_JOB)


def create_config_map(client: KubeClient, owner: Owner, body: Json) -> Json:
    """Create a ConfigMap, or return the one of that name if it is ours already; errors as in `_create`."""
    return _create(client, owner, body, CREATE_CONFIG_MAP, GET_CONFIG_MAP)


def _create(client: KubeClient, owner: Owner, body: Json, create: Call, read: Call) -> Json:
    """Raises NameTaken, PredecessorRemains, OwnerGone, Rejected, ApiFailure."""
    namespace, name = owner.key.namespace, body["metadata"]["name"]
    try:
        return client.request(create, namespace, body=body, query=_MANAGED)
    except HttpError as error:
        if error.status == 409:
            return _adopt(client.get(read, namespace, name), owner, body["kind"], name)
        if error.status == 404 or _is_terminating(error):
            raise OwnerGone(f"namespace {namespace} is being deleted") from error
        if error.status == 422:
            raise Rejected(str(error.body.get("message", error))) from error
        raise


def _adopt(found: Json | None, owner: Owner, kind: str, name: str) -> Json:
    if found is None:
        raise PredecessorRemains(f"{kind} {name} was there a moment ago")
    controller = controller_of(found)
    if controller.get("uid") == owner.uid:
        return found
    if controller.get("kind") == owner.key.kind.value and controller.get("name") == owner.key.name:
        raise PredecessorRemains(f"{kind} {name} belongs to a deleted {owner.key}")
    raise NameTaken(kind, name)


def _is_terminating(error: HttpError) -> bool:
    causes = (error.body.get("details") or {}).get("causes") or ()
    return error.status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


def patch_job(client: KubeClient, namespace: str, job: JobView, spec: dict[str, Any]) -> Json | None:
    """Merge `spec` into the spec of this very Job; None where it is gone."""
    body = {"metadata": {"uid": job.uid}, "spec": spec}
    try:
        return client.request(PATCH_JOB, namespace, job.name, body, _MANAGED)
    except HttpError as error:
        if error.status in (404, 409):
            return None
        raise


def delete_job(client: KubeClient, namespace: str, job: JobView) -> None:
    """Delete this very Job with its pods; it is no error when it is gone."""
    _delete(client, DELETE_JOB, namespace, job.name, {"uid": job.uid})


def delete_object(client: KubeClient, owner: Owner, version: str) -> None:
    """Delete an object of ours as it was seen, and with it its children; it is no error when it is gone or changed."""
    key = owner.key
    preconditions = {"uid": owner.uid, "resourceVersion": version}
    _delete(client, delete_owner(key.kind.plural), key.namespace, key.name, preconditions)


def _delete(client: KubeClient, call: Call, namespace: str, name: str, preconditions: dict[str, str]) -> None:
    options = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        # The default for Jobs leaves the pods behind.
        "propagationPolicy": "Background",
        "preconditions": preconditions,
    }
    try:
        client.request(call, namespace, name, options)
    except HttpError as error:
        if error.status not in (404, 409):
            raise
