"""The children of an object: made if missing, and made to follow what may change."""

from __future__ import annotations

from typing import Any

from tunery_operator.errors import NameTaken
from tunery_operator.kube import apply
from tunery_operator.kube.read import read_attempt
from tunery_operator.manifests.configmap import build_config_map
from tunery_operator.manifests.job import build_job
from tunery_operator.plan.model import JobPlan
from tunery_operator.reconcile.world import World
from tunery_operator.status.jobview import JobView, parse_job
from tunery_operator.status.snapshot import Attempt


def ensure_attempt(world: World, plan: JobPlan, attempt: Attempt | None, *, configure: bool = True) -> Attempt | None:
    """Return the Job of a plan, made if it was missing: nothing is made while the object is suspended.

    `configure=False` leaves the ConfigMap of a Job that is there alone: what the plan says of it is not known.
    Raises NameTaken, PredecessorRemains, OwnerGone, Rejected.
    """
    if attempt is None:
        return None if plan.suspend else _start(world, plan)
    if attempt.job.finished:
        return attempt
    if configure:
        _ensure_config_map(world, plan)
    return _follow(world, plan, attempt)


def _start(world: World, plan: JobPlan) -> Attempt:
    """Create the Job; one that was there already may be far along, so it is read with its pods."""
    job = _create(world, plan)
    return read_attempt(world.client, world.cache, plan.owner, plan.name) or Attempt(job)


def _create(world: World, plan: JobPlan) -> JobView:
    """Create ConfigMap and Job side by side; a Job whose ConfigMap cannot be had goes again."""
    config_map = world.side.submit(_ensure_config_map, world, plan)
    body = apply.create_job(world.client, plan.owner, build_job(plan))
    world.cache.see_job(body)
    job = parse_job(body)
    try:
        config_map.result()
    except NameTaken:
        apply.delete_job(world.client, plan.owner.key.namespace, job)
        raise
    return job


def _ensure_config_map(world: World, plan: JobPlan) -> None:
    entry = (plan.owner.uid, plan.config_name)
    if entry in world.cache.configured:
        return
    apply.create_config_map(world.client, plan.owner, build_config_map(plan))
    world.cache.configured.add(entry)


def _follow(world: World, plan: JobPlan, attempt: Attempt) -> Attempt:
    """Carry over what the user may change while the Job runs."""
    job = attempt.job
    change: dict[str, Any] = {}
    if job.active_deadline_seconds != plan.active_deadline_seconds:
        change["activeDeadlineSeconds"] = plan.active_deadline_seconds
    if _must_switch(plan, job):
        change["suspend"] = plan.suspend
    if not change:
        return attempt
    body = apply.patch_job(world.client, plan.owner.key.namespace, job, change)
    if body is None:
        return attempt
    world.cache.see_job(body)
    return Attempt(parse_job(body), attempt.pods)


def _must_switch(plan: JobPlan, job: JobView) -> bool:
    """Tell whether the user's wish must be carried over; a queue's own suspension is left alone."""
    if job.suspend == plan.suspend:
        return False
    return plan.suspend or not plan.kueue_labels
