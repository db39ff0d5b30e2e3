"""Provide the steps of a BatchInference: wait for its server, send the requests, result."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.errors import did_you_mean
from tunery_api.runspec import Task
from tunery_api.serverstatus import ServerCondition, ServerPhase
from tunery_api.status import ConditionStatus
from tunery_api.validation import parse_batchinference
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.jobs import ensure_job, recover_result
from tunery_operator.controllers.observe import ManagedObject, condition_of, observe_main_job
from tunery_operator.controllers.reconciler import KindSteps
from tunery_operator.observed.metadata import Key
from tunery_operator.planning.batchinference import plan_batch, plan_report, server_of
from tunery_operator.planning.inputs import ReadyServer, UnfinishedInput
from tunery_operator.runtime.reader import peek_object
from tunery_operator.status.snapshot import Snapshot


def _observe(context: ReconcileContext, obj: ManagedObject) -> Snapshot:
    """Return the snapshot of the object, with its Job."""
    return observe_main_job(context, obj, Task.BATCH)


def _apply(context: ReconcileContext, obj: ManagedObject, spec: BatchInferenceSpec, snapshot: Snapshot) -> Snapshot:
    """Create the Job once the server answers; from then on its pod reports the state of the server."""
    main = snapshot.main
    if main is not None and main.job.finished:
        return recover_result(context, obj, snapshot, lambda: plan_report(spec, obj.owner, context.platform))
    plan = plan_batch(spec, obj.owner, context.platform)  # raises before anything is waited for
    if main is None:
        server = _server(context, obj, server_of(spec, obj.owner))
        snapshot = replace(snapshot, inputs=(server,))
        if isinstance(server, UnfinishedInput):
            return snapshot
    return replace(snapshot, main=ensure_job(context, obj, plan, main))


def _server(context: ReconcileContext, obj: ManagedObject, key: Key) -> ReadyServer | UnfinishedInput:
    """Return whether the server's status says that it answers requests. Raises StaleObject, ApiFailure."""
    body = peek_object(context.client, context.cache, key)
    if body is None:
        meant = did_you_mean(key.name, [view.name for view in context.cache.objects[key.kind].items(key.namespace)])
        return UnfinishedInput(key.name, f"does not exist yet{meant}", exists=False, kind=key.kind)
    status = body.get("status") or {}
    if condition_of(status, ServerCondition.AVAILABLE).get("status") == ConditionStatus.TRUE.value:
        return ReadyServer(key.name)
    state = UnfinishedInput.of_server(status.get("phase") or ServerPhase.PENDING.value)
    return UnfinishedInput(key.name, state, kind=key.kind)


def _job_names(obj: ManagedObject) -> tuple[str, ...]:
    return (obj.job_name(Task.BATCH),)


BATCHINFERENCE_STEPS: Final = KindSteps(parse_batchinference, _observe, _apply, _job_names)
