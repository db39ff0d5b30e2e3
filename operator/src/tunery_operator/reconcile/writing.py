"""Write a status down, and tell whoever wants to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery_operator import metrics
from tunery_operator.errors import StaleObject
from tunery_operator.kube.status import write_status
from tunery_operator.reconcile.found_object import FoundObject
from tunery_operator.reconcile.services import Services
from tunery_operator.status.events import transitions
from tunery_operator.views.owner import Key


def write(services: Services, obj: FoundObject, status: Mapping[str, Any], change: dict[str, Any]) -> frozenset[Key]:
    """Write `change`, which makes `status`; return the objects that waited for its phase to change.

    Raises StaleObject, OwnerGone, ApiFailure.
    """
    key = obj.owner.key
    try:
        body = write_status(services.client, obj.owner, obj.version, change)
    except StaleObject:
        services.cache.mark_stale(key)
        raise
    services.cache.note_written(key, services.monotonic())
    woken = frozenset(services.cache.see_owner(key.kind, body) - {key})
    services.events.post(obj.owner, transitions(obj.status, status))
    metrics.observe(obj.status, status, _facts(services, obj))
    return woken


def _facts(services: Services, obj: FoundObject) -> metrics.Facts:
    key = obj.owner.key
    return metrics.Facts(
        kind=key.kind.value,
        namespace=key.namespace,
        created=obj.body["metadata"].get("creationTimestamp") or "",
        now=services.now(),
        gpu_resource=obj.resources[1],
        method=str(obj.spec.get("method") or ""),
    )
