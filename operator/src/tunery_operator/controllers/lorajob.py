"""Provide the steps of a LoRAJob: inputs, preflight, training, result."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tunery_api.lorajob import LoRAJobSpec, PreflightPolicy
from tunery_api.methods import Method
from tunery_api.runspec import Task
from tunery_api.status import ConditionType
from tunery_api.validation import parse_lorajob
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.inputs import Inputs, InputSource, reject_cycle, resolve_inputs
from tunery_operator.controllers.jobs import (
    apply_stop,
    delete_job,
    ensure_job,
    has_lost_report,
    own_leftovers,
    recover_result,
    recreate_job,
    sync_suspend,
    tolerate_worker_failures,
)
from tunery_operator.controllers.observe import ManagedObject, find_attempt, is_overdue, observe_main_job
from tunery_operator.controllers.reconciler import KindSteps
from tunery_operator.planning.inputs import with_checked_digest
from tunery_operator.planning.job import JobPlan, output_location
from tunery_operator.planning.lorajob import ResolvedInputs, plan_preflight, plan_publish, plan_report, plan_train
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stop import stop_of
from tunery_search.trial_spec import resolved_inputs


def _observe(context: ReconcileContext, obj: ManagedObject) -> Snapshot:
    """Return the snapshot of the object, with its Jobs of every task."""
    snapshot = observe_main_job(context, obj, Task.TRAIN)
    method = obj.spec.get("method", Method.AUTO.value)
    policy = obj.spec.get("preflight")
    needed = policy != PreflightPolicy.SKIP.value and not obj.has_true(ConditionType.PREFLIGHT)
    train = obj.job_name(Task.TRAIN)
    return replace(
        snapshot,
        # Run time of deleted Jobs counts. Read the leftovers first: a pod that ends meanwhile is then a lost pod.
        leftovers=own_leftovers(context, obj.owner, train),
        lost_pods=context.cache.state(obj.owner.key).lost.get(train, ()),
        method=None if method == Method.AUTO.value else method,
        preflight_needed=needed,
        preflight_only=policy == PreflightPolicy.ONLY.value,
        preflight=find_attempt(context, obj, Task.PREFLIGHT) if needed else None,
        publishing=find_attempt(context, obj, Task.PUBLISH) if obj.stop or obj.on_stop else None,
    )


def _apply(context: ReconcileContext, obj: ManagedObject, spec: LoRAJobSpec, snapshot: Snapshot) -> Snapshot:
    """Apply the next step: stop, recover the result, end at the deadline, wait for inputs, check, train."""
    stop, main, platform = stop_of(snapshot), snapshot.main, context.platform
    if stop is not None:

        def plan_partial() -> JobPlan:
            return plan_publish(spec, obj.owner, platform, _known(obj, _inputs(context, obj, spec)), stop.why)

        return apply_stop(context, obj, snapshot, stop, plan_partial)
    output_location(spec.output, obj.owner, platform.settings)  # raises before anything is waited for
    if main is not None and main.job.finished:
        return recover_result(context, obj, snapshot, lambda: plan_report(spec, obj.owner, platform, _known(obj, None)))
    if main is not None and is_overdue(snapshot):
        # The pod stores a checkpoint as it ends; only then the status shows that the deadline has expired.
        delete_job(context, obj.owner, main.job)
        return replace(snapshot, main=None)
    inputs = _inputs(context, obj, spec)
    if main is None:
        shown = inputs.added_to(snapshot)
        if inputs.has_new or inputs.ready is None:
            return shown
        if snapshot.preflight_needed:
            return _ensure_preflight(context, obj, spec, inputs, shown)
        if snapshot.preflight_only or is_overdue(snapshot):
            return shown
    elif inputs.ready is None:
        # The Job has all it needs, even if its input was deleted before the status recorded it.
        synced = sync_suspend(context, obj.owner, main, suspend=spec.suspend)
        return tolerate_worker_failures(context, replace(snapshot, main=synced))
    return _ensure_training(context, obj, spec, inputs, snapshot)


def _ensure_training(
    context: ReconcileContext, obj: ManagedObject, spec: LoRAJobSpec, inputs: Inputs, snapshot: Snapshot
) -> Snapshot:
    """Create or update the train Job."""
    plan = plan_train(spec, obj.owner, context.platform, _known(obj, inputs))
    snapshot = recreate_job(context, snapshot)
    shown = replace(inputs.added_to(snapshot), main=ensure_job(context, obj, plan, snapshot.main))
    return tolerate_worker_failures(context, shown)


def _ensure_preflight(
    context: ReconcileContext, obj: ManagedObject, spec: LoRAJobSpec, inputs: Inputs, snapshot: Snapshot
) -> Snapshot:
    """Create the preflight Job, or another one if its report is lost."""
    plan = plan_preflight(spec, obj.owner, context.platform, _known(obj, inputs))
    if snapshot.preflight is not None and has_lost_report(snapshot.preflight):
        delete_job(context, obj.owner, snapshot.preflight.job)
        snapshot = replace(snapshot, preflight=None)
    return replace(snapshot, preflight=ensure_job(context, obj, plan, snapshot.preflight))


def _inputs(context: ReconcileContext, obj: ManagedObject, spec: LoRAJobSpec) -> Inputs:
    resumes = spec.resume_from is not None
    source = spec.resume_from or spec.continue_from
    if source is not None and source.lora_job_ref is not None and not obj.was_accepted():
        reject_cycle(context, obj, source.lora_job_ref, "resumeFrom" if resumes else "continueFrom")
    sources = [InputSource(source.lora_job_ref, source.uri, resumes)] if source is not None else []
    return resolve_inputs(context, obj, sources)


def _known(obj: ManagedObject, inputs: Inputs | None) -> ResolvedInputs:
    ready = inputs.ready if inputs is not None else None
    status, resumes = obj.status, bool(obj.spec.get("resumeFrom"))
    return ResolvedInputs(
        adapter=with_checked_digest(ready[0].adapter, status) if ready and not resumes else None,
        resume=ready[0].adapter.uri if ready and resumes else None,
        revision=(status.get("resolved") or {}).get("revision"),
        disk_bytes=(status.get("disk") or {}).get("estimateBytes"),
        inputs=resolved_inputs(obj.body) if obj.owner.sweep is not None else None,
    )


def _job_names(obj: ManagedObject) -> tuple[str, ...]:
    return obj.job_name(Task.TRAIN), obj.job_name(Task.PREFLIGHT)


LORAJOB_STEPS: Final = KindSteps(parse_lorajob, _observe, _apply, _job_names)
