"""The object that a story is about, as it was read; what is followed in it stands there unparsed.

An accepted spec is followed even where today's rules would refuse it: so what a running Job must follow (`suspend`,
the deadline) is read from the object itself, with the API's own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.lorajob import LifecycleFields, LoRAJobSpec
from tunery_api.names import RETRY_ANNOTATION
from tunery_api.placement import ResourcesSpec
from tunery_api.status import ConditionStatus, ConditionType
from tunery_operator.kube.owners import FINAL
from tunery_operator.kube.read import read_object
from tunery_operator.plan.model import Key, Kind, Owner, parse_owner
from tunery_operator.reconcile.world import World
from tunery_operator.status.jobview import ORPHAN, foreign_finalizers
from tunery_operator.status.snapshot import Snapshot

_SPECS: Final[dict[Kind, type[LifecycleFields]]] = {Kind.LORAJOB: LoRAJobSpec, Kind.ADAPTERMERGE: AdapterMergeSpec}


@dataclass(frozen=True, slots=True)
class Subject:
    """One LoRAJob or AdapterMerge of the API server."""

    owner: Owner
    body: dict[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec as it was written, not validated."""
        return self.body.get("spec") or {}

    @property
    def status(self) -> Mapping[str, Any]:
        """The status that the API server has."""
        return self.body.get("status") or {}

    @property
    def finished(self) -> bool:
        """Tell whether it succeeded or failed."""
        return self.status.get("phase") in FINAL

    @property
    def version(self) -> str:
        """The resource version that everything is computed from."""
        version: str = self.body["metadata"]["resourceVersion"]
        return version

    @property
    def retry(self) -> str | None:
        """The annotation that asks for another try of a failed object."""
        return self.owner.annotations.get(RETRY_ANNOTATION)

    @property
    def suspend(self) -> bool:
        """Tell whether the user wants no pods."""
        return bool(self.spec.get("suspend"))

    @property
    def resources(self) -> tuple[int, str]:
        """The GPUs of a pod that works, and the name of their resource."""
        default = _default(self.owner.key.kind, "resources")
        raw = self.spec.get("resources")
        if raw is None:
            return default.gpus, default.gpu_resource
        plain = ResourcesSpec()
        return raw.get("gpus", plain.gpus), raw.get("gpuResource", plain.gpu_resource)

    @property
    def deadline_seconds(self) -> int | None:
        """How long its pods may run in all; None: for ever."""
        seconds: int | None = self.spec.get("activeDeadlineSeconds")
        return _default(self.owner.key.kind, "active_deadline_seconds") if seconds is None else seconds

    def holds(self, condition: ConditionType) -> bool:
        """Tell whether a condition is True in the status that was read."""
        return self._condition(condition).get("status") == ConditionStatus.TRUE.value

    def accepted(self) -> bool:
        """Tell whether its spec was found good before, in whatever generation, or so good that a Job was made of it.

        What may change afterwards, such as suspend, gives no reason to judge the rest once more.
        """
        passed = self._condition(ConditionType.PREFLIGHT).get("reason") == "PreflightPassed"
        return self.holds(ConditionType.VALIDATED) or passed or "jobName" in self.status

    def _condition(self, type_: ConditionType) -> Mapping[str, Any]:
        conditions = self.status.get("conditions") or ()
        return next((condition for condition in conditions if condition["type"] == type_.value), {})


def _default(kind: Kind, field: str) -> Any:
    """Return what the API says of a field that a manifest leaves out."""
    return _SPECS[kind].model_fields[field].get_default(call_default_factory=True)


def find_subject(world: World, key: Key) -> Subject | None:
    """Return the object, or None where it is gone or on its way.

    One that was deleted and is kept by a finalizer of somebody else counts as suspended: nobody wants its pods.
    """
    body = read_object(world.client, world.cache, key)
    if body is None:
        return None
    if "deletionTimestamp" in body["metadata"]:
        if not kept_by(body):
            return None
        body = {**body, "spec": {**(body.get("spec") or {}), "suspend": True}}
    return Subject(parse_owner(key.kind, body), body)


def kept_by(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the finalizers that keep a deleted object, where its children are to go: none while it is not deleted."""
    meta = body["metadata"]
    if "deletionTimestamp" not in meta or ORPHAN in (meta.get("finalizers") or ()):
        return ()
    return foreign_finalizers(body)


def first_snapshot(world: World, subject: Subject) -> Snapshot:
    """Return the snapshot of an object before anything was gathered about its children."""
    owner = subject.owner
    gpus, gpu_resource = subject.resources
    report = world.cache.progress(owner.key, owner.uid)
    return Snapshot(
        kind=owner.key.kind,
        owner=owner,
        status=subject.status,
        now=world.now(),
        watched_before=world.watched_before,
        suspend=subject.suspend,
        kept_by=kept_by(subject.body),
        gpus=gpus,
        gpu_resource=gpu_resource,
        deadline_seconds=subject.deadline_seconds,
        progress=report.status if report is not None else None,
        reporter=report.pod_uid if report is not None else "",
        retry=subject.retry,
        input_references=tuple(subject.status.get("inputReferences") or ()),
    )
