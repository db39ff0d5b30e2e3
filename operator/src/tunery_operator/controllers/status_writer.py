"""Provide the one write of a status, with its events and metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tunery_operator import metrics
from tunery_operator.client.apply import write_status
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.errors import StaleObject
from tunery_operator.observed.metadata import Key
from tunery_operator.status.events import transitions


def write_and_record(
    context: ReconcileContext, obj: ManagedObject, status: Mapping[str, Any], change: dict[str, Any]
) -> frozenset[Key]:
    """Write `change`, which results in `status`, with its events and metrics; return the objects that waited for it.

    Raises StaleObject, OwnerGone, ApiFailure.
    """
    keys_to_requeue = write_change(context, obj, change)
    context.events.record(obj.owner, transitions(obj.status, status, of_trial=obj.owner.sweep is not None))
    metrics.observe(obj.status, status, _facts(context, obj))
    return keys_to_requeue


def write_change(context: ReconcileContext, obj: ManagedObject, change: dict[str, Any]) -> frozenset[Key]:
    """Write `change`; return the objects that waited for it. Raises what `write_and_record` raises."""
    key = obj.owner.key
    try:
        body = write_status(context.client, obj.owner, obj.version, change)
    except StaleObject:
        context.cache.state(key).stale = True
        raise
    context.cache.state(key).written_at = context.monotonic()
    return frozenset(context.cache.put_object(key.kind, body) - {key})


def write_delay(
    context: ReconcileContext, obj: ManagedObject, change: Mapping[str, Any], frequent: Collection[str]
) -> float:
    """Return the seconds to delay a write: a change of only `frequent` fields is due once in progress.writeSeconds."""
    written = context.cache.state(obj.owner.key).written_at
    if written is None or not all(field in frequent for field in change):
        return 0.0
    return written + context.platform.settings.progress.write_seconds - context.monotonic()


def _facts(context: ReconcileContext, obj: ManagedObject) -> metrics.Facts:
    key = obj.owner.key
    return metrics.Facts(
        kind=key.kind.value,
        namespace=key.namespace,
        created=obj.body["metadata"].get("creationTimestamp") or "",
        now=context.now(),
        gpu_resource=obj.resources[1],
        method=str(obj.spec.get("method") or ""),
    )
