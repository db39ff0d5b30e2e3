"""Write a status: once, only what changed, and only over the version that it was computed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.names import FIELD_MANAGER
from tunery_operator.client.client import HttpError, Json, KubeClient
from tunery_operator.client.merge_patch import merge_patch
from tunery_operator.client.permissions import patch_status
from tunery_operator.errors import OwnerGone, StaleObject
from tunery_operator.observed.metadata import Owner

_QUERY: Final = {"fieldManager": FIELD_MANAGER}


def status_change(body: Json, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch from the object's status to `status`; empty where nothing changed."""
    return merge_patch(body.get("status") or {}, status)


def write_status(client: KubeClient, owner: Owner, version: str, change: dict[str, Any]) -> Json:
    """Write a change of status and return the object as it is now.

    Raises StaleObject when the object is no longer at `version`, OwnerGone when it is gone.
    """
    key = owner.key
    body = {"metadata": {"uid": owner.uid, "resourceVersion": version}, "status": change}
    try:
        return client.request(patch_status(key.kind.plural), key.namespace, key.name, body, _QUERY)
    except HttpError as error:
        if error.status == 409:
            raise StaleObject(f"{key} changed meanwhile") from error
        if error.status == 404:
            raise OwnerGone(f"{key} is gone") from error
        raise
