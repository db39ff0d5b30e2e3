"""The end of an object, and what comes after it: Jobs stopped and marked, another try, expiry."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_operator.errors import ApiFailure
from tunery_operator.kube import apply
from tunery_operator.kube.status import status_change
from tunery_operator.plan.model import Owner
from tunery_operator.reconcile.children import remove
from tunery_operator.reconcile.inputs import is_awaited, look_inputs_up_again
from tunery_operator.reconcile.outcome import DONE, Outcome
from tunery_operator.reconcile.subject import Subject
from tunery_operator.reconcile.world import World
from tunery_operator.reconcile.writing import write
from tunery_operator.status.clock import parse_time
from tunery_operator.status.jobview import JobView
from tunery_operator.status.reopen import reopened
from tunery_operator.status.snapshot import Attempt, Snapshot

AWAITED_SECONDS: Final = 30.0
"""How long an expired object that somebody waits for lives on before the next look."""
GOING_SECONDS: Final = 1.0
"""Time until the next look at Jobs that are on their way out."""

logger = logging.getLogger(__name__)


def jobs_of(snapshot: Snapshot) -> Iterator[Attempt]:
    """Yield the Jobs of an object that are there."""
    yield from (item for item in (snapshot.preflight, snapshot.work, snapshot.report) if item is not None)


def stop_jobs(world: World, snapshot: Snapshot) -> None:
    """Delete the Jobs of a failed object that have not ended: before its end is written, or nobody would any more."""
    for attempt in jobs_of(snapshot):
        if not attempt.job.finished:
            remove(world, snapshot.owner, attempt.job)


def mark_done(world: World, owner: Owner, jobs: Iterable[JobView | None]) -> None:
    """Mark the Jobs that have ended: nobody watches them any more. One that cannot be marked is merely watched on."""
    for job in jobs:
        if job is None or job.done or not job.finished or job.owner_uid != owner.uid:
            continue
        try:
            apply.mark_job_done(world.client, owner.key.namespace, job)
        except ApiFailure as error:
            logger.info("Job %s of %s is not marked as done: %s", job.name, owner.key, error)


def after_the_end(world: World, subject: Subject) -> Outcome:
    """Do what is left to do for an object that has ended."""
    names = [child_name(subject.owner.key.name, task.value) for task in Task]
    status = reopened(subject.status, subject.retry)
    if status is not None:
        return _try_again(world, subject, look_inputs_up_again(world, subject, status), names)
    noted = {**subject.status, "observedGeneration": subject.owner.generation}
    if "observedGeneration" in subject.status and (change := status_change(subject.body, noted)):
        # Its spec was changed after the end: nothing follows but its time to live, and tools see that it was seen.
        return Outcome(0.0, write(world, subject, noted, change))
    jobs = [job for name in names if (job := world.cache.job(subject.owner.key.namespace, name)) is not None]
    for job in jobs:
        # Somebody else has written the end, or the operator was killed before it came to this.
        if not job.finished and job.owner_uid == subject.owner.uid:
            remove(world, subject.owner, job)
    mark_done(world, subject.owner, jobs)
    return _expire(world, subject)


def _try_again(world: World, subject: Subject, status: Mapping[str, Any], names: Iterable[str]) -> Outcome:
    """Reopen a failed object: first its old Jobs go, or the next look would take their verdict again."""
    owner = subject.owner
    old = [job for name in names if (job := apply.find_job(world.client, owner, name)) is not None]
    for job in old:
        remove(world, owner, job)
    if any(apply.find_job(world.client, owner, job.name) is not None for job in old):
        return Outcome(GOING_SECONDS)
    woken = write(world, subject, status, status_change(subject.body, status))
    return Outcome(0.0, woken)


def seconds_to_live(world: World, subject: Subject, status: Mapping[str, Any]) -> float | None:
    """Return how long a finished object still lives; None: until someone deletes it."""
    ended = parse_time(status.get("completionTime"))
    ttl = subject.spec.get("ttlSecondsAfterFinished", world.platform.settings.default_ttl_seconds)
    if ended is None or not isinstance(ttl, int):
        return None
    return ttl - (world.now() - ended).total_seconds()


def _expire(world: World, subject: Subject) -> Outcome:
    """Delete a finished object whose time is over, unless somebody still waits for what it made."""
    seconds = seconds_to_live(world, subject, subject.status)
    if seconds is None or seconds > 0:
        return DONE if seconds is None else Outcome(seconds)
    if is_awaited(world, subject.owner.key):
        return Outcome(AWAITED_SECONDS)
    apply.delete_object(world.client, subject.owner, subject.version)
    return DONE
