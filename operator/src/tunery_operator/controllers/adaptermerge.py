"""Provide the steps of an AdapterMerge: wait for its adapters, merge, result."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.runspec import Task
from tunery_api.validation import parse_adaptermerge
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.inputs import InputSource, resolve_inputs
from tunery_operator.controllers.jobs import ensure_job, recover_result, sync_suspend
from tunery_operator.controllers.observe import ManagedObject, observe_main_job
from tunery_operator.controllers.reconciler import KindSteps
from tunery_operator.planning.adaptermerge import plan_merge, plan_report, unmergeable_methods
from tunery_operator.planning.job import output_location
from tunery_operator.status.snapshot import Snapshot


def _observe(context: ReconcileContext, obj: ManagedObject) -> Snapshot:
    """Return the snapshot of the object, with its merge Job."""
    return observe_main_job(context, obj, Task.MERGE)


def _apply(context: ReconcileContext, obj: ManagedObject, spec: AdapterMergeSpec, snapshot: Snapshot) -> Snapshot:
    """Create the merge Job once every adapter is published."""
    output_location(spec.output, obj.owner, context.platform.settings)  # raises before anything is waited for
    main = snapshot.main
    if main is not None and main.job.finished:
        return recover_result(context, obj, snapshot, lambda: plan_report(spec, obj.owner, context.platform))
    unmergeable = unmergeable_methods(spec)
    sources = [InputSource(item.lora_job_ref, item.uri, unmergeable=unmergeable) for item in spec.adapters]
    inputs = resolve_inputs(context, obj, sources)
    ready = inputs.ready
    if ready is not None and (main is not None or not inputs.has_new):
        plan = plan_merge(spec, obj.owner, context.platform, ready)
        return replace(inputs.added_to(snapshot), main=ensure_job(context, obj, plan, main))
    if main is None:
        return inputs.added_to(snapshot)
    # The Job has all it needs, even if an input was deleted before the status recorded it.
    return replace(snapshot, main=sync_suspend(context, obj.owner, main, suspend=spec.suspend))


def _job_names(obj: ManagedObject) -> tuple[str, ...]:
    return (obj.job_name(Task.MERGE),)


ADAPTERMERGE_STEPS: Final = KindSteps(parse_adaptermerge, _observe, _apply, _job_names)
