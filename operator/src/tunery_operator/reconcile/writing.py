"""Write a status down, and tell whoever wants to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery_operator import metrics
from tunery_operator.errors import StaleObject
from tunery_operator.kube.status import write_status
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.subject import Subject
from tunery_operator.reconcile.world import World
from tunery_operator.status.events import transitions


def write(world: World, subject: Subject, status: Mapping[str, Any], change: dict[str, Any]) -> frozenset[Key]:
    """Write `change`, which makes `status`; return the objects that waited for its phase to change.

    Raises StaleObject, OwnerGone, ApiFailure.
    """
    key = subject.owner.key
    try:
        body = write_status(world.client, subject.owner, subject.version, change)
    except StaleObject:
        world.cache.mark_stale(key)
        raise
    world.cache.note_written(key, world.monotonic())
    woken = frozenset(world.cache.see_owner(key.kind, body) - {key})
    world.events.post(subject.owner, transitions(subject.status, status))
    metrics.observe(subject.status, status, _facts(world, subject))
    return woken


def _facts(world: World, subject: Subject) -> metrics.Facts:
    key = subject.owner.key
    return metrics.Facts(
        kind=key.kind.value,
        namespace=key.namespace,
        created=subject.body["metadata"].get("creationTimestamp") or "",
        now=world.now(),
        gpu_resource=subject.resources[1],
        method=str(subject.spec.get("method") or ""),
    )
