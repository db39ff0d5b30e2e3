"""The story of an AdapterMerge: wait for its adapters, merge, result."""

from __future__ import annotations

from dataclasses import replace

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.validation import parse_adaptermerge
from tunery_operator.errors import NameTaken, Rejected
from tunery_operator.kube.read import read_attempt
from tunery_operator.plan.adaptermerge import plan_merge
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.children import ensure_attempt
from tunery_operator.reconcile.inputs import all_ready, read_input
from tunery_operator.reconcile.outcome import DONE, Outcome
from tunery_operator.reconcile.report import expire, report
from tunery_operator.reconcile.subject import Subject, find_subject, first_snapshot, invalid_snapshot
from tunery_operator.reconcile.world import World
from tunery_operator.status.snapshot import Snapshot


def reconcile_adaptermerge(world: World, key: Key) -> Outcome:
    """Bring one AdapterMerge a step further; gives the same answer however often it is asked."""
    subject = find_subject(world, key)
    if subject is None:
        return DONE
    if subject.finished:
        return expire(world, subject)
    try:
        spec = parse_adaptermerge(subject.body)
        snapshot = _advance(world, subject, spec, _gather(world, subject, spec))
    except InvalidSpec as error:
        snapshot = invalid_snapshot(world, subject, error)
    except Rejected as error:
        snapshot = invalid_snapshot(world, subject, InvalidSpec([FieldError("spec", str(error))]))
    except NameTaken as error:
        snapshot = replace(first_snapshot(world, subject, False, spec.resources), conflict=str(error))
    world.cache.stale.discard(key)
    return report(world, subject, snapshot)


def _gather(world: World, subject: Subject, spec: AdapterMergeSpec) -> Snapshot:
    """Return what is in the cluster."""
    owner = subject.owner
    snapshot = first_snapshot(world, subject, spec.suspend, spec.resources)
    work = read_attempt(world.client, world.cache, owner, child_name(owner.key.name, Task.MERGE.value))
    lost = world.cache.lost_pods(work.job.uid) if work is not None else ()
    return replace(snapshot, work=work, lost_pods=lost)


def _advance(world: World, subject: Subject, spec: AdapterMergeSpec, snapshot: Snapshot) -> Snapshot:
    """Make the merge Job once every adapter is there."""
    owner = subject.owner
    if snapshot.work is not None and snapshot.work.job.finished:
        return snapshot
    inputs = tuple(read_input(world, owner, item.lora_job_ref, item.uri) for item in spec.adapters)
    ready = all_ready(inputs)
    if ready is not None:
        plan = plan_merge(spec, owner, world.platform, ready)
        return replace(snapshot, inputs=inputs, work=ensure_attempt(world, plan, snapshot.work))
    # The Job that is there has all it needs, even if an input was deleted since.
    return snapshot if snapshot.work is not None else replace(snapshot, inputs=inputs)
