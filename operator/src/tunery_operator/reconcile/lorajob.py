"""The story of a LoRAJob: inputs, preflight, training, result."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tunery_api.lorajob import LoRAJobSpec, PreflightPolicy
from tunery_api.methods import Method
from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.status import ConditionType
from tunery_api.validation import parse_lorajob
from tunery_operator.plan.common import output_place
from tunery_operator.plan.lorajob import Known, plan_preflight, plan_report, plan_train
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.children import ensure_attempt, follow, remove
from tunery_operator.reconcile.gathering import find_attempt, gather_work, is_overdue, is_silent, report_again
from tunery_operator.reconcile.inputs import Inputs, Wanted, refuse_circle, resolve_inputs
from tunery_operator.reconcile.outcome import Outcome
from tunery_operator.reconcile.story import Story, go_on
from tunery_operator.reconcile.subject import Subject
from tunery_operator.reconcile.world import World
from tunery_operator.status.snapshot import Snapshot


def reconcile_lorajob(world: World, key: Key) -> Outcome:
    """Bring one LoRAJob a step further; gives the same answer however often it is asked."""
    return go_on(world, key, _STORY)


def _gather(world: World, subject: Subject) -> Snapshot:
    """Return what is in the cluster."""
    snapshot = gather_work(world, subject, Task.TRAIN)
    method = subject.spec.get("method", Method.AUTO.value)
    skipped = subject.spec.get("preflight") == PreflightPolicy.SKIP.value
    needed = not skipped and not subject.holds(ConditionType.PREFLIGHT)
    return replace(
        snapshot,
        method=None if method == Method.AUTO.value else method,
        preflight_needed=needed,
        preflight=find_attempt(world, subject, Task.PREFLIGHT) if needed else None,
    )


def _advance(world: World, subject: Subject, spec: LoRAJobSpec, snapshot: Snapshot) -> Snapshot:
    """Make what comes next: the preflight Job, or the train Job once preflight has passed."""
    # Judged before anything is waited for.
    output_place(spec.output, subject.owner, world.platform.settings)
    if snapshot.work is not None and snapshot.work.job.finished:
        return report_again(
            world, subject, snapshot, lambda: plan_report(spec, subject.owner, world.platform, _known(subject, None))
        )
    inputs = _inputs(world, subject, spec)
    if snapshot.work is None and (inputs.news or inputs.ready is None):
        return inputs.shown_in(snapshot)
    if snapshot.preflight_needed and snapshot.work is None:
        return _check(world, subject, spec, inputs.shown_in(snapshot))
    if snapshot.work is None and is_overdue(snapshot):
        return inputs.shown_in(snapshot)
    if inputs.ready is None and snapshot.work is not None:
        # The Job that is there has all it needs, even if its input was deleted before it was written down.
        return replace(snapshot, work=follow(world, subject.owner, snapshot.work, suspend=spec.suspend))
    plan = plan_train(spec, subject.owner, world.platform, _known(subject, inputs))
    return replace(inputs.shown_in(snapshot), work=ensure_attempt(world, subject, plan, snapshot.work))


def _check(world: World, subject: Subject, spec: LoRAJobSpec, snapshot: Snapshot) -> Snapshot:
    """Make the preflight Job; one whose report is gone runs once more."""
    inputs = Inputs(snapshot.inputs, snapshot.input_references, news=False)
    plan = plan_preflight(spec, subject.owner, world.platform, _known(subject, inputs))
    if snapshot.preflight is not None and is_silent(snapshot.preflight):
        remove(world, subject.owner, snapshot.preflight.job)
        snapshot = replace(snapshot, preflight=None)
    return replace(snapshot, preflight=ensure_attempt(world, subject, plan, snapshot.preflight))


def _inputs(world: World, subject: Subject, spec: LoRAJobSpec) -> Inputs:
    resumes = spec.resume_from is not None
    source = spec.resume_from or spec.continue_from
    if source is not None and source.lora_job_ref is not None and not subject.accepted():
        refuse_circle(world, subject, source.lora_job_ref, "resumeFrom" if resumes else "continueFrom")
    wanted = [Wanted(source.lora_job_ref, source.uri, resumes)] if source is not None else []
    return resolve_inputs(world, subject, wanted)


def _known(subject: Subject, inputs: Inputs | None) -> Known:
    ready = inputs.ready if inputs is not None else None
    status, resumes = subject.status, bool(subject.spec.get("resumeFrom"))
    return Known(
        adapter=ready[0].adapter if ready and not resumes else None,
        resume=ready[0].adapter.uri if ready and resumes else None,
        revision=(status.get("resolved") or {}).get("revision"),
        checkpoint=(status.get("checkpoint") or {}).get("uri"),
        disk_bytes=(status.get("disk") or {}).get("estimateBytes"),
    )


def _children(key: Key) -> tuple[str, ...]:
    return child_name(key.name, Task.TRAIN.value), child_name(key.name, Task.PREFLIGHT.value)


_STORY: Final = Story(parse_lorajob, _gather, _advance, _children)
