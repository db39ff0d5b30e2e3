"""The story of a LoRAJob: inputs, preflight, training, result."""

from __future__ import annotations

from dataclasses import replace

from tunery_api.lorajob import LoRAJobSpec, PreflightPolicy
from tunery_api.methods import Method
from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.status import ConditionType
from tunery_api.validation import parse_lorajob
from tunery_operator.kube.read import read_attempt
from tunery_operator.plan.inputs import AdapterInput
from tunery_operator.plan.lorajob import plan_preflight, plan_train
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.children import ensure_attempt
from tunery_operator.reconcile.inputs import all_ready, read_input
from tunery_operator.reconcile.outcome import Outcome
from tunery_operator.reconcile.story import go_on
from tunery_operator.reconcile.subject import Subject, first_snapshot
from tunery_operator.reconcile.world import World
from tunery_operator.status.snapshot import Snapshot


def reconcile_lorajob(world: World, key: Key) -> Outcome:
    """Bring one LoRAJob a step further; gives the same answer however often it is asked."""
    return go_on(world, key, parse_lorajob, _advance)


def _gather(world: World, subject: Subject, spec: LoRAJobSpec) -> Snapshot:
    """Return what is in the cluster."""
    owner = subject.owner
    snapshot = first_snapshot(world, subject, spec.suspend, spec.resources)
    work = read_attempt(world.client, world.cache, owner, child_name(owner.key.name, Task.TRAIN.value))
    needed = spec.preflight is PreflightPolicy.REQUIRED and not subject.holds(ConditionType.PREFLIGHT)
    preflight = None
    if needed:
        preflight = read_attempt(world.client, world.cache, owner, child_name(owner.key.name, Task.PREFLIGHT.value))
    lost = world.cache.lost_pods(work.job.uid) if work is not None else ()
    method = None if spec.method is Method.AUTO else spec.method.value
    return replace(snapshot, method=method, preflight_needed=needed, preflight=preflight, work=work, lost_pods=lost)


def _advance(world: World, subject: Subject, spec: LoRAJobSpec) -> Snapshot:
    """Make what comes next: the preflight Job, or the train Job once preflight has passed."""
    snapshot = _gather(world, subject, spec)
    inputs = _inputs(world, subject, spec)
    ready = all_ready(inputs)
    if ready is None and snapshot.work is None:
        return replace(snapshot, inputs=inputs)
    adapter = ready[0].adapter if ready else None
    if snapshot.preflight_needed and snapshot.work is None:
        plan = plan_preflight(spec, subject.owner, world.platform, adapter)
        return replace(snapshot, preflight=ensure_attempt(world, plan, snapshot.preflight))
    revision = (subject.status.get("resolved") or {}).get("revision")
    plan = plan_train(spec, subject.owner, world.platform, adapter, revision)
    return replace(snapshot, work=ensure_attempt(world, plan, snapshot.work, configure=ready is not None))


def _inputs(world: World, subject: Subject, spec: LoRAJobSpec) -> tuple[AdapterInput, ...]:
    if spec.continue_from is None:
        return ()
    return (read_input(world, subject.owner, spec.continue_from.lora_job_ref, spec.continue_from.uri),)
