"""The story of an AdapterMerge: wait for its adapters, merge, result."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.validation import parse_adaptermerge
from tunery_operator.plan.adaptermerge import plan_merge, plan_report
from tunery_operator.plan.common import output_place
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.children import ensure_attempt, follow
from tunery_operator.reconcile.gathering import gather_work, report_again
from tunery_operator.reconcile.inputs import Wanted, resolve_inputs
from tunery_operator.reconcile.outcome import Outcome
from tunery_operator.reconcile.story import Story, go_on
from tunery_operator.reconcile.subject import Subject
from tunery_operator.reconcile.world import World
from tunery_operator.status.snapshot import Snapshot


def reconcile_adaptermerge(world: World, key: Key) -> Outcome:
    """Bring one AdapterMerge a step further; gives the same answer however often it is asked."""
    return go_on(world, key, _STORY)


def _gather(world: World, subject: Subject) -> Snapshot:
    """Return what is in the cluster."""
    return gather_work(world, subject, Task.MERGE)


def _advance(world: World, subject: Subject, spec: AdapterMergeSpec, snapshot: Snapshot) -> Snapshot:
    """Make the merge Job once every adapter is there."""
    # Judged before anything is waited for.
    output_place(spec.output, subject.owner, world.platform.settings)
    work = snapshot.work
    if work is not None and work.job.finished:
        return report_again(world, subject, snapshot, lambda: plan_report(spec, subject.owner, world.platform))
    inputs = resolve_inputs(world, subject, [Wanted(item.lora_job_ref, item.uri) for item in spec.adapters])
    ready = inputs.ready
    if ready is not None and (work is not None or not inputs.news):
        plan = plan_merge(spec, subject.owner, world.platform, ready)
        return replace(inputs.shown_in(snapshot), work=ensure_attempt(world, subject, plan, work))
    if work is None:
        return inputs.shown_in(snapshot)
    # The Job that is there has all it needs, even if an input was deleted before it was written down.
    return replace(snapshot, work=follow(world, subject.owner, work, suspend=spec.suspend))


def _children(key: Key) -> tuple[str, ...]:
    return (child_name(key.name, Task.MERGE.value),)


_STORY: Final = Story(parse_adaptermerge, _gather, _advance, _children)
