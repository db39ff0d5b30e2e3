"""Provide what a reconcile observes: the object as it was read, and its main Job.

The fields that a running Job follows (`suspend`, the deadline) are read from the object without parsing the whole spec:
an accepted spec is followed even if today's rules would reject it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from tunery_api.fields import UNOBSERVED
from tunery_api.kinds import JOB_KINDS, KINDS, Kind
from tunery_api.names import KUEUE_LABELS, RETRY_ANNOTATION, child_name
from tunery_api.runspec import Task
from tunery_api.status import FINAL_PHASES, ConditionStatus, ConditionType
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.warnings import with_warnings
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import ORPHAN, Key, Owner, foreign_finalizers, parse_owner
from tunery_operator.planning.platform_values import PlatformValues, platform_values
from tunery_operator.runtime.reader import read_attempt, read_object
from tunery_operator.status.deadline import deadline_left
from tunery_operator.status.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ManagedObject:
    """An object of one of Tunery's kinds, as it was read from the API server."""

    owner: Owner
    body: dict[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec as written, not validated."""
        return self.body.get("spec") or {}

    @property
    def status(self) -> Mapping[str, Any]:
        """The status; empty while it has only the schema's default."""
        status = self.body.get("status") or {}
        return {} if status.get("observedGeneration") == UNOBSERVED else status

    @property
    def finished(self) -> bool:
        """Whether it has ended; a server never does."""
        return self.owner.key.kind in JOB_KINDS and self.status.get("phase") in FINAL_PHASES

    @property
    def version(self) -> str:
        """The resource version that everything is computed from."""
        version: str = self.body["metadata"]["resourceVersion"]
        return version

    @property
    def retry(self) -> str | None:
        """The annotation that requests a retry of a failed object."""
        return self.owner.annotations.get(RETRY_ANNOTATION)

    @property
    def suspend(self) -> bool:
        """Whether the user has suspended it."""
        return bool(self.spec.get("suspend"))

    @property
    def stop(self) -> str | None:
        """Why the user stops it; None: it continues."""
        return self.spec.get("stop")

    @property
    def on_stop(self) -> str | None:
        """What a stop does with the partial result; None: unset."""
        return self.spec.get("onStop")

    @property
    def resources(self) -> tuple[int, str]:
        """The GPUs of a pod of the main Job, and the name of their resource."""
        if "resources" not in KINDS[self.owner.key.kind].spec.model_fields:
            return 0, ""
        default = _default(self.owner.key.kind, "resources")
        raw = self.spec.get("resources")
        if raw is None:
            return default.gpus, default.gpu_resource
        plain = type(default)()
        return raw.get("gpus", plain.gpus), raw.get("gpuResource", plain.gpu_resource)

    @property
    def nodes(self) -> int:
        """The number of nodes, and so of pods."""
        nodes = (self.spec.get("resources") or {}).get("nodes") if self.owner.key.kind is Kind.LORAJOB else None
        return 1 if nodes is None else int(nodes)

    def job_name(self, task: Task) -> str:
        """Return the name of its Job for a task."""
        return child_name(self.owner.key.name, task.value, self.nodes if task is Task.TRAIN else 1)

    @property
    def replicas(self) -> int:
        """The replicas of a server."""
        return int(self.spec.get("replicas", 1))

    @property
    def deadline_seconds(self) -> int | None:
        """The seconds that its pods may run in total; None: without limit, or a sweep, whose trials have their own."""
        if self.owner.key.kind is Kind.LORASWEEP:
            return None
        seconds: int | None = self.spec.get("activeDeadlineSeconds")
        return _default(self.owner.key.kind, "active_deadline_seconds") if seconds is None else seconds

    def has_true(self, condition: ConditionType) -> bool:
        """Return whether a condition is True in the status that was read."""
        return self._condition(condition).get("status") == ConditionStatus.TRUE.value

    def was_accepted(self) -> bool:
        """Return whether a spec of any generation was accepted, or a Job was created from it.

        Only mutable fields, such as suspend, can have changed since: the spec is not validated again.
        """
        passed = self._condition(ConditionType.PREFLIGHT).get("reason") == "PreflightPassed"
        return self.has_true(ConditionType.VALIDATED) or passed or "jobName" in self.status

    def is_validated(self) -> bool:
        """Return whether the current generation of the spec was accepted."""
        now = self.status.get("observedGeneration") == self.owner.generation
        return now and self.has_true(ConditionType.VALIDATED)

    def _condition(self, type_: ConditionType) -> Mapping[str, Any]:
        return condition_of(self.status, type_)


def condition_of(status: Mapping[str, Any], type_: StrEnum) -> Mapping[str, Any]:
    """Return a condition of a status; empty if unset."""
    conditions = status.get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == type_.value), {})


def _default(kind: Kind, field: str) -> Any:
    """Return the default of a field."""
    return KINDS[kind].spec.model_fields[field].get_default(call_default_factory=True)


def find_object(context: ReconcileContext, key: Key) -> ManagedObject | None:
    """Return the object, or None if it is gone or being deleted.

    A deleted object that another controller's finalizer keeps counts as suspended, a server as one without replicas.
    """
    body = read_object(context.client, context.cache, key)
    if body is None:
        return None
    if "deletionTimestamp" in body["metadata"]:
        if not blocking_finalizers(body):
            return None
        none = {"suspend": True} if key.kind in JOB_KINDS else {"replicas": 0}
        body = {**body, "spec": {**(body.get("spec") or {}), **none}}
    return ManagedObject(parse_owner(key.kind, body), body)


def blocking_finalizers(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the finalizers that keep a deleted object; none if its children are to be orphaned."""
    meta = body["metadata"]
    if "deletionTimestamp" not in meta or ORPHAN in (meta.get("finalizers") or ()):
        return ()
    return foreign_finalizers(body)


def chart_values(context: ReconcileContext, obj: ManagedObject) -> PlatformValues:
    """Return the chart values that the pods of an object use."""
    return platform_values(obj.owner.key.kind, obj.spec, context.platform.settings, obj.resources[0])


def first_snapshot(context: ReconcileContext, obj: ManagedObject) -> Snapshot:
    """Return the snapshot of an object without its children."""
    owner = obj.owner
    gpus, gpu_resource = obj.resources
    report = context.cache.state(owner.key, owner.uid).progress
    return Snapshot(
        kind=owner.key.kind,
        owner=owner,
        status=obj.status,
        now=context.now(),
        watched_before=context.watched_before,
        taking_reports_since=context.acting_since if context.platform.progress is not None else None,
        certificate_fault=context.certificate_fault(),
        suspend=obj.suspend,
        stop=obj.stop,
        on_stop=obj.on_stop,
        blocking_finalizers=blocking_finalizers(obj.body),
        gpus=gpus,
        gpu_resource=gpu_resource,
        platform=chart_values(context, obj),
        deadline_seconds=obj.deadline_seconds,
        progress=report.status if report is not None else None,
        reporter=report.pod_uid if report is not None else "",
        reported_at=report.at if report is not None else None,
        retry=obj.retry,
        input_references=tuple(obj.status.get("inputReferences") or ()),
    )


def find_attempt(context: ReconcileContext, obj: ManagedObject, task: Task) -> Attempt | None:
    """Return the owner's Job for a task with its pods and their warnings, or None."""
    owner = obj.owner
    attempt = read_attempt(context.client, context.cache, owner, obj.job_name(task))
    return with_warnings(context.warnings, context.client, owner.key.namespace, attempt, context.now())


def observe_main_job(context: ReconcileContext, obj: ManagedObject, task: Task) -> Snapshot:
    """Return the snapshot with the main Job, whose task is `task`."""
    main = find_attempt(context, obj, task)
    complete = main is not None and main.job.complete
    return replace(
        first_snapshot(context, obj),
        main=main,
        lost_pods=context.cache.state(obj.owner.key).lost.get(obj.job_name(task), ()),
        queue=main.job.queue if main is not None else obj.owner.labels.get(KUEUE_LABELS[0]) or None,
        report=find_attempt(context, obj, Task.REPORT) if complete else None,
    )


def is_overdue(snapshot: Snapshot) -> bool:
    """Return whether the deadline has passed: no Job is created then."""
    left = deadline_left(snapshot)
    return left is not None and left <= 0
