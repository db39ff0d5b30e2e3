"""The story of an AdapterMerge: wait for its adapters, merge, result."""

from __future__ import annotations

from dataclasses import replace

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.validation import parse_adaptermerge
from tunery_operator.kube.read import read_attempt
from tunery_operator.plan.adaptermerge import plan_merge
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.children import ensure_attempt
from tunery_operator.reconcile.inputs import all_ready, read_input
from tunery_operator.reconcile.outcome import Outcome
from tunery_operator.reconcile.story import go_on
from tunery_operator.reconcile.subject import Subject, first_snapshot
from tunery_operator.reconcile.world import World
from tunery_operator.status.snapshot import Snapshot


def reconcile_adaptermerge(world: World, key: Key) -> Outcome:
    """Bring one AdapterMerge a step further; gives the same answer however often it is asked."""
    return go_on(world, key, parse_adaptermerge, _advance)


def _gather(world: World, subject: Subject, spec: AdapterMergeSpec) -> Snapshot:
    """Return what is in the cluster."""
    owner = subject.owner
    snapshot = first_snapshot(world, subject, spec.suspend, spec.resources)
    work = read_attempt(world.client, world.cache, owner, child_name(owner.key.name, Task.MERGE.value))
    lost = world.cache.lost_pods(work.job.uid) if work is not None else ()
    return replace(snapshot, work=work, lost_pods=lost)


def _advance(world: World, subject: Subject, spec: AdapterMergeSpec) -> Snapshot:
    """Make the merge Job once every adapter is there."""
    owner, snapshot = subject.owner, _gather(world, subject, spec)
    if snapshot.work is not None and snapshot.work.job.finished:
        return snapshot
    inputs = tuple(read_input(world, owner, item.lora_job_ref, item.uri) for item in spec.adapters)
    ready = all_ready(inputs)
    if ready is not None:
        plan = plan_merge(spec, owner, world.platform, ready)
        return replace(snapshot, inputs=inputs, work=ensure_attempt(world, plan, snapshot.work))
    # The Job that is there has all it needs, even if an input was deleted since.
    return snapshot if snapshot.work is not None else replace(snapshot, inputs=inputs)
