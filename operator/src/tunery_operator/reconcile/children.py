"""The Jobs of an object: made if missing, made to follow what may change, and taken away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tunery_api.runspec import Task
from tunery_api.status import ConditionType
from tunery_operator.errors import NameTaken, OwnerGone, PredecessorRemains, PreflightsFull, StaleObject
from tunery_operator.kube import apply
from tunery_operator.kube.client import Json
from tunery_operator.kube.rbac import GET_JOB
from tunery_operator.kube.read import read_attempt, read_live
from tunery_operator.manifests.job import build_job
from tunery_operator.plan.model import JobPlan, Owner
from tunery_operator.reconcile.subject import Subject
from tunery_operator.reconcile.world import World
from tunery_operator.status.jobview import JobView, parse_job
from tunery_operator.status.podview import PodView, outlives
from tunery_operator.status.queueing import is_queued
from tunery_operator.status.snapshot import Attempt


def ensure_attempt(world: World, subject: Subject, plan: JobPlan, attempt: Attempt | None) -> Attempt | None:
    """Return the Job of a plan, made if it was missing: nothing is made while the object is suspended.

    Raises NameTaken, PredecessorRemains, PreflightsFull, FieldContested, StaleObject, OwnerGone, Rejected, ApiFailure.
    """
    if attempt is not None and attempt.job.finished:
        return attempt
    if attempt is not None and _is_outdated(plan, attempt):
        remove(world, plan.owner, attempt.job)
        attempt = None
    attempt = attempt or _unseen(world, subject, plan)
    if attempt is None:
        return None if plan.suspend else _start(world, subject, plan)
    return follow(world, plan.owner, attempt, suspend=plan.suspend)


def _is_outdated(plan: JobPlan, attempt: Attempt) -> bool:
    """Tell whether what the Job was made from has changed, and no pod runs that would be lost.

    That is the spec's settings, and the authority by which its pods know the operator: with an old one they could not
    report. For that alone no Job gives up its place in a queue.
    """
    job = attempt.job
    if any(pod.running for pod in attempt.pods):
        return False
    return job.settings not in (None, plan.settings) or (_trusts_another(plan, job) and not is_queued(job))


def _trusts_another(plan: JobPlan, job: JobView) -> bool:
    return plan.progress is not None and job.authority not in (None, plan.progress.authority)


def remove(world: World, owner: Owner, job: JobView) -> None:
    """Delete a Job; its pod is told to end, writes its checkpoint, and stays known as a leftover until it has ended."""
    apply.delete_job(world.client, owner.key.namespace, job)
    world.cache.forget_job(owner.key.namespace, job.name, job.uid)


# Create


def _unseen(world: World, subject: Subject, plan: JobPlan) -> Attempt | None:
    """Return the Job that no watch tells of, such as one whose labels were taken away, where something speaks for it.

    That is a pod that nobody has told to end, or that it is to be stopped now. Raises NameTaken where it is not ours.
    """
    runs_on = any(not pod.deleting for pod in own_leftovers(world, plan.owner, plan.name))
    stops = plan.suspend and "jobName" in subject.status and not subject.holds(ConditionType.SUSPENDED)
    if not runs_on and not stops:
        return None
    found = world.client.get(GET_JOB, plan.owner.key.namespace, plan.name)
    if found is None or "deletionTimestamp" in found["metadata"]:
        return None
    job = parse_job(found)
    if job.owner_uid == plan.owner.uid:
        return Attempt(job, world.cache.pods(job.uid))
    if runs_on:
        raise NameTaken(plan.name)
    return None


def _start(world: World, subject: Subject, plan: JobPlan) -> Attempt:
    _wait_for_leftovers(world, plan)
    if "jobName" in subject.status:
        _look_again(world, subject)
    with _preflight_slot(world, plan):
        body = apply.create_job(world.client, plan.owner, build_job(plan))
        world.cache.see_job(body)
    # A Job that was there already may be far along, so it is read with its pods.
    return read_attempt(world.client, world.cache, plan.owner, plan.name) or Attempt(parse_job(body))


def _wait_for_leftovers(world: World, plan: JobPlan) -> None:
    """Two pods must never work on one result: an earlier Job's pod still writes its checkpoint."""
    pod = next(iter(leftovers(world, plan.owner, plan.name)), None)
    if pod is not None:
        where = f" on node {pod.node}" if pod.node else ""
        does = f"still ends{where}" if pod.deleting else outlives(pod, where)
        raise PredecessorRemains(f"pod {pod.name} of an earlier Job, which {does}")


def leftovers(world: World, owner: Owner, name: str) -> tuple[PodView, ...]:
    """Return the pods of earlier Jobs of that name that have not ended."""
    job = world.cache.job(owner.key.namespace, name)
    pods = world.cache.pods_named(owner.key.namespace, name)
    return tuple(pod for pod in pods if not pod.finished and (job is None or pod.job_uid != job.uid))


def _look_again(world: World, subject: Subject) -> None:
    """Read an object that had a Job before live: a second one for a finished or deleted object would train again."""
    key = subject.owner.key
    live = read_live(world.client, world.cache, key)
    if live is None or live["metadata"]["uid"] != subject.owner.uid:
        raise OwnerGone(f"{key} is gone")
    if live["metadata"]["resourceVersion"] != subject.version:
        raise StaleObject(f"{key} changed meanwhile")


def own_leftovers(world: World, owner: Owner, name: str) -> tuple[PodView, ...]:
    """Return those of the leftovers that worked for this very object, and not for an earlier one of its name."""
    return tuple(pod for pod in leftovers(world, owner, name) if pod.owner_uid in ("", owner.uid))


@contextmanager
def _preflight_slot(world: World, plan: JobPlan) -> Iterator[None]:
    """Hold the place of one preflight among those that the platform allows; raises PreflightsFull."""
    limit = world.platform.settings.preflight_max_concurrent
    if limit == 0 or plan.task is not Task.PREFLIGHT:
        yield
        return
    with world.preflights:
        running = world.cache.unfinished_jobs(Task.PREFLIGHT.value)
        if running >= limit:
            raise PreflightsFull(f"room for its preflight: {running} run, and the platform allows {limit} at a time")
        yield


# Follow


def follow(world: World, owner: Owner, attempt: Attempt, *, suspend: bool) -> Attempt | None:
    """Carry the user's wish over to a Job; None where the Job had to go.

    Only our own suspension is ever undone. A Job with a queue belongs to the queue, which would start it again: it is
    deleted, which frees its quota, and made anew later.
    Raises FieldContested, ApiFailure.
    """
    job = attempt.job
    if not suspend:
        return _resume(world, owner, attempt) if job.suspended_by_us else attempt
    if job.queue is not None:
        remove(world, owner, job)
        return None
    return attempt if job.suspend else _suspend(world, owner, attempt)


def _suspend(world: World, owner: Owner, attempt: Attempt) -> Attempt:
    with world.quarrels.change(attempt.job.uid, "spec.suspend"):
        return _seen(world, attempt, apply.suspend_job(world.client, owner.key.namespace, attempt.job))


def _resume(world: World, owner: Owner, attempt: Attempt) -> Attempt:
    return _seen(world, attempt, apply.resume_job(world.client, owner.key.namespace, attempt.job))


def _seen(world: World, attempt: Attempt, body: Json | None) -> Attempt:
    if body is None:
        return attempt
    world.cache.see_job(body)
    return replace(attempt, job=parse_job(body))
