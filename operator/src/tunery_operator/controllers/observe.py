"""Provide what a reconcile observes: the object as it was read, and its main Job."""

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
from tunery_operator.client.read import read_attempt, read_object
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.warnings import with_warnings
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import ORPHAN, Key, Owner, foreign_finalizers, parse_owner
from tunery_operator.planning.platform_values import PlatformValues, platform_values
from tunery_operator.status.ledger import deadline_left
from tunery_operator.status.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ManagedObject:
    """One object of ours of the API server."""

    owner: Owner
    body: dict[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec as it was written, not validated."""
        return self.body.get("spec") or {}

    @property
    def status(self) -> Mapping[str, Any]:
        """The status that was written; what the schema says of an object that nobody has seen is none."""
        status = self.body.get("status") or {}
        return {} if status.get("observedGeneration") == UNOBSERVED else status

    @property
    def finished(self) -> bool:
        """Tell whether it succeeded or failed; a server never ends."""
        return self.owner.key.kind in JOB_KINDS and self.status.get("phase") in FINAL_PHASES

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
    def stop(self) -> str | None:
        """Why the user wants it ended for good; None: it is to go on."""
        return self.spec.get("stop")

    @property
    def on_stop(self) -> str | None:
        """What the manifest says of what was trained by then; None: it is left open."""
        return self.spec.get("onStop")

    @property
    def resources(self) -> tuple[int, str]:
        """The GPUs of a pod that works, and the name of their resource."""
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
        """How many pods work together."""
        nodes = (self.spec.get("resources") or {}).get("nodes") if self.owner.key.kind is Kind.LORAJOB else None
        return 1 if nodes is None else int(nodes)

    def job_name(self, task: Task) -> str:
        """Return the name of its Job for a task."""
        return child_name(self.owner.key.name, task.value, self.nodes if task is Task.TRAIN else 1)

    @property
    def replicas(self) -> int:
        """How many replicas a server is to have."""
        return int(self.spec.get("replicas", 1))

    @property
    def deadline_seconds(self) -> int | None:
        """How long its pods may run in all; None: for ever. Of a sweep its trials' own say that."""
        if self.owner.key.kind is Kind.LORASWEEP:
            return None
        seconds: int | None = self.spec.get("activeDeadlineSeconds")
        return _default(self.owner.key.kind, "active_deadline_seconds") if seconds is None else seconds

    def has_true(self, condition: ConditionType) -> bool:
        """Tell whether a condition is True in the status that was read."""
        return self._condition(condition).get("status") == ConditionStatus.TRUE.value

    def was_accepted(self) -> bool:
        """Tell whether its spec was found good before, in whatever generation, or so good that a Job was made of it.

        What may change afterwards, such as suspend, gives no reason to judge the rest once more.
        """
        passed = self._condition(ConditionType.PREFLIGHT).get("reason") == "PreflightPassed"
        return self.has_true(ConditionType.VALIDATED) or passed or "jobName" in self.status

    def is_validated(self) -> bool:
        """Tell whether its spec as it is now was found good before."""
        now = self.status.get("observedGeneration") == self.owner.generation
        return now and self.has_true(ConditionType.VALIDATED)

    def _condition(self, type_: ConditionType) -> Mapping[str, Any]:
        return condition_of(self.status, type_)


def condition_of(status: Mapping[str, Any], type_: StrEnum) -> Mapping[str, Any]:
    """Return a condition of a status; an empty one where it is not set."""
    conditions = status.get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == type_.value), {})


def _default(kind: Kind, field: str) -> Any:
    """Return what the API says of a field that a manifest leaves out."""
    return KINDS[kind].spec.model_fields[field].get_default(call_default_factory=True)


def find_object(context: ReconcileContext, key: Key) -> ManagedObject | None:
    """Return the object, or None where it is gone or on its way.

    One that was deleted and is kept by a finalizer of somebody else counts as suspended, a server as without replicas:
    nobody wants its pods.
    """
    body = read_object(context.client, context.cache, key)
    if body is None:
        return None
    if "deletionTimestamp" in body["metadata"]:
        if not kept_by(body):
            return None
        none = {"suspend": True} if key.kind in JOB_KINDS else {"replicas": 0}
        body = {**body, "spec": {**(body.get("spec") or {}), **none}}
    return ManagedObject(parse_owner(key.kind, body), body)


def kept_by(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the finalizers that keep a deleted object, where its children are to go: none while it is not deleted."""
    meta = body["metadata"]
    if "deletionTimestamp" not in meta or ORPHAN in (meta.get("finalizers") or ()):
        return ()
    return foreign_finalizers(body)


def chart_values(context: ReconcileContext, obj: ManagedObject) -> PlatformValues:
    """Return the values of the chart that the pods of an object use."""
    return platform_values(obj.owner.key.kind, obj.spec, context.platform.settings, obj.resources[0])


def first_snapshot(context: ReconcileContext, obj: ManagedObject) -> Snapshot:
    """Return the snapshot of an object before anything was gathered about its children."""
    owner = obj.owner
    gpus, gpu_resource = obj.resources
    report = context.cache.progress(owner.key, owner.uid)
    return Snapshot(
        kind=owner.key.kind,
        owner=owner,
        status=obj.status,
        now=context.now(),
        watched_before=context.watched_before,
        taking_reports_since=context.acting_since if context.platform.progress is not None else None,
        distrust=context.distrust(),
        suspend=obj.suspend,
        stop=obj.stop,
        on_stop=obj.on_stop,
        kept_by=kept_by(obj.body),
        gpus=gpus,
        gpu_resource=gpu_resource,
        platform=chart_values(context, obj),
        deadline_seconds=obj.deadline_seconds,
        progress=report.status if report is not None else None,
        reporter=report.pod_uid if report is not None else "",
        heard_at=report.at if report is not None else None,
        retry=obj.retry,
        input_references=tuple(obj.status.get("inputReferences") or ()),
    )


def find_attempt(context: ReconcileContext, obj: ManagedObject, task: Task) -> Attempt | None:
    """Return the owner's Job for a task, with its pods and what the cluster says against them, or None."""
    owner = obj.owner
    attempt = read_attempt(context.client, context.cache, owner, obj.job_name(task))
    return with_warnings(context.warnings, context.client, owner.key.namespace, attempt, context.now())


def observe_main_job(context: ReconcileContext, obj: ManagedObject, task: Task) -> Snapshot:
    """Return the snapshot with the Job that does the work, which `task` names."""
    main = find_attempt(context, obj, task)
    complete = main is not None and main.job.complete
    return replace(
        first_snapshot(context, obj),
        main=main,
        lost_pods=context.cache.lost_named(obj.owner.key.namespace, obj.job_name(task)),
        queue=main.job.queue if main is not None else obj.owner.labels.get(KUEUE_LABELS[0]) or None,
        report=find_attempt(context, obj, Task.REPORT) if complete else None,
    )


def is_overdue(snapshot: Snapshot) -> bool:
    """Tell whether the pods have had all the time that they may have: no Job is made for the end to stop at once."""
    left = deadline_left(snapshot)
    return left is not None and left <= 0
