"""The object that a story is about, as it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunery_api.errors import InvalidSpec
from tunery_api.names import KUEUE_LABELS
from tunery_api.placement import ResourcesSpec
from tunery_api.status import ConditionStatus, ConditionType
from tunery_operator.kube.cache import FINAL
from tunery_operator.kube.read import read_object
from tunery_operator.plan.model import Key, Owner, parse_owner
from tunery_operator.reconcile.world import World
from tunery_operator.status.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Subject:
    """One LoRAJob or AdapterMerge of the API server."""

    owner: Owner
    body: dict[str, Any]

    @property
    def status(self) -> Mapping[str, Any]:
        """The status that the API server has."""
        return self.body.get("status") or {}

    @property
    def finished(self) -> bool:
        """Tell whether it succeeded or failed, for good."""
        return self.status.get("phase") in FINAL

    @property
    def version(self) -> str:
        """The resource version that everything is computed from."""
        version: str = self.body["metadata"]["resourceVersion"]
        return version

    def holds(self, condition: ConditionType) -> bool:
        """Tell whether a condition is True in the status that was read."""
        conditions = self.status.get("conditions") or ()
        return any(c["type"] == condition.value and c["status"] == ConditionStatus.TRUE.value for c in conditions)


def find_subject(world: World, key: Key) -> Subject | None:
    """Return the object, or None where it is gone or on its way."""
    body = read_object(world.client, world.cache, key)
    if body is None or "deletionTimestamp" in body["metadata"]:
        return None
    return Subject(parse_owner(key.kind, body), body)


def first_snapshot(world: World, subject: Subject, suspend: bool, resources: ResourcesSpec) -> Snapshot:
    """Return the snapshot of an object before anything was gathered about its children."""
    owner = subject.owner
    reported = world.cache.progress.get(owner.key)
    return Snapshot(
        kind=owner.key.kind,
        owner=owner,
        status=subject.status,
        now=world.now(),
        suspend=suspend,
        gpus=resources.gpus,
        queue=owner.labels.get(KUEUE_LABELS[0]),
        progress=reported[1] if reported is not None and reported[0] == owner.uid else None,
    )


def invalid_snapshot(world: World, subject: Subject, error: InvalidSpec) -> Snapshot:
    """Return the snapshot of an object whose spec cannot be run."""
    owner = subject.owner
    return Snapshot(owner.key.kind, owner, subject.status, world.now(), errors=error.errors)
